//! Progress on stderr: a bar on a terminal, now and then a plain line elsewhere.
