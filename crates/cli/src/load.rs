//! From a MODEL as typed to something that answers: hub, kernels, weights, tokenizer, template.
