//! Side files in JSON: read under a size cap, with no key twice where that would hide something.
//!
//! Depth is bounded by `serde_json` (128 levels).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::Error;

/// The bytes of the file at `path`, if they are no more than `limit`; `None` if there is no such
/// file.
pub(crate) fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let fail = |e| Error::io(path, e);
    match std::fs::metadata(path) {
        Ok(seen) if seen.is_file() => {}
        Ok(_) => return Err(Error::invalid(path, "not a regular file")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
    }
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    // One byte more than is allowed tells "too large" from "just fits".
    file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge {
            path: path.to_path_buf(),
            limit,
        });
    }
    Ok(Some(bytes))
}

/// The JSON file at `path`; `None` if there is no such file.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Value>, Error> {
    read_as(path, limit)
}

pub(crate) fn read_as<T: serde::de::DeserializeOwned>(
    path: &Path,
    limit: u64,
) -> Result<Option<T>, Error> {
    let Some(bytes) = read_capped(path, limit)? else {
        return Ok(None);
    };
    let json = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(Some(json))
}

/// A JSON object as a list in the order of the file, in which a key that comes twice is an error.
/// (Maps keep the last one silently, so that two readers may see two different models.)
pub(crate) struct Distinct<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Distinct<V> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Distinct<V>, D::Error> {
        struct Keys<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = Distinct<V>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct<V>, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut list = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!(
                            "the key `{key}` comes twice"
                        )));
                    }
                    list.push((key, map.next_value()?));
                }
                Ok(Distinct(list))
            }
        }

        input.deserialize_map(Keys(PhantomData))
    }
}
