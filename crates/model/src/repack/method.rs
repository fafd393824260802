//! What `quantization_config` of a config.json says, as far as it is understood.

use serde_json::Value;

use crate::error::{Error, Result};

/// How a checkpoint's matrices are quantised.
#[derive(Debug, PartialEq)]
pub(super) enum Method {
    None,
    Gptq(Groups),
    Awq(Groups),
    /// NF4 or FP4 of bitsandbytes.
    FourBit,
    /// LLM.int8() of bitsandbytes.
    Int8,
    /// 8-bit floats, each with scales; rows and columns of a block, where the file says.
    Fp8 {
        block: Option<[usize; 2]>,
    },
}

/// Parameters of GPTQ and AWQ.
#[derive(Debug, PartialEq)]
pub(super) struct Groups {
    /// Bits of an integer.
    pub(super) bits: usize,
    /// Inputs that share a scale; `None`: all of them.
    pub(super) size: Option<usize>,
    /// What is added to a stored zero point.
    pub(super) zero_offset: i32,
    /// Whether the groups are in no order, so that a tensor must say which input is in which.
    pub(super) unordered: bool,
}

impl Groups {
    /// How many groups so many inputs make.
    pub(super) fn groups(&self, inputs: usize) -> usize {
        let size = self.size.unwrap_or(inputs).min(inputs);
        inputs.div_ceil(size.max(1))
    }

    /// Whether every block of a storage type lies inside a group.
    pub(super) fn in_blocks(&self) -> bool {
        !self.unordered
            && self
                .size
                .is_none_or(|size| size.is_multiple_of(kernels::repack::PACKED))
    }
}

/// Keys of a `quantization_config` with all the values that change nothing here. `*` stands for any.
type Accepted = [(&'static str, &'static [&'static str])];

const GPTQ: &Accepted = &[
    ("bits", &["2", "3", "4", "8"]),
    ("format", &["\"gptq\"", "\"gptq_v2\""]),
    ("checkpoint_format", &["\"gptq\"", "\"gptq_v2\""]),
    ("pack_dtype", &["\"int32\""]),
    ("dynamic", &["{}"]),
    ("adapter", &[]),
    ("lm_head", &["false"]),
    ("is_marlin_format", &["false"]),
];

const AWQ: &Accepted = &[
    ("bits", &["4"]),
    ("version", &["\"gemm\"", "\"GEMM\""]),
    ("zero_point", &["true"]),
    ("backend", &["\"autoawq\""]),
];

const BITSANDBYTES: &Accepted = &[
    ("bnb_4bit_quant_type", &["\"nf4\"", "\"fp4\""]),
    ("bnb_4bit_quant_storage", &["\"uint8\""]),
];

const FP8: &Accepted = &[
    ("fmt", &["\"e4m3\"", "\"e5m2\""]),
    ("scale_fmt", &["\"float\""]),
];

const COMPRESSED: &Accepted = &[
    ("format", &["\"float-quantized\"", "\"naive-quantized\""]),
    ("quantization_status", &["\"compressed\"", "\"frozen\""]),
    ("transform_config", &["{}"]),
];

impl Method {
    /// Reads a config.json.
    pub(super) fn of(config: &Value) -> Result<Method> {
        let Some(q) = config.get("quantization_config").filter(|q| !q.is_null()) else {
            return Ok(Method::None);
        };
        let name = q.get("quant_method").and_then(Value::as_str);
        let flag = |key: &str| q.get(key).and_then(Value::as_bool).unwrap_or(false);
        let accept = |keys| accept(q, keys);
        match name {
            Some("gptq") => {
                accept(GPTQ)?;
                let v2 = ["checkpoint_format", "format"]
                    .map(|key| q.get(key) == Some(&"gptq_v2".into()));
                let zero_offset = i32::from(!v2.contains(&true));
                Ok(Method::Gptq(groups(
                    q,
                    "bits",
                    "group_size",
                    zero_offset,
                    flag("desc_act"),
                )?))
            }
            Some("awq") => {
                accept(AWQ)?;
                Ok(Method::Awq(groups(q, "bits", "group_size", 0, false)?))
            }
            Some("bitsandbytes") => {
                accept(BITSANDBYTES)?;
                match (flag("load_in_4bit"), flag("load_in_8bit")) {
                    (true, false) => Ok(Method::FourBit),
                    (false, true) => Ok(Method::Int8),
                    _ => Err(refused("load_in_4bit", q)),
                }
            }
            Some("fbgemm_fp8") => Ok(Method::Fp8 { block: None }),
            Some("fp8") => {
                accept(FP8)?;
                let block = block(q)?;
                Ok(Method::Fp8 { block })
            }
            Some("modelopt") => match q["quant_algo"] == "FP8" {
                true => Ok(Method::Fp8 { block: None }),
                false => Err(refused("quant_algo", q)),
            },
            Some("compressed-tensors") => {
                accept(COMPRESSED)?;
                compressed(q)?;
                Ok(Method::Fp8 { block: None })
            }
            _ => Err(refused("quant_method", q)),
        }
    }
}

fn refused(key: &str, q: &Value) -> Error {
    let mut value = q.get(key).unwrap_or(&Value::Null).to_string();
    if let Some((at, _)) = value.char_indices().nth(80) {
        value.truncate(at);
    }
    Error::NotImplemented(format!(
        "`{key}` = {value} in quantization_config of config.json"
    ))
}

/// Refuses a key of the table that has none of its values. Absence and null are neutral.
fn accept(q: &Value, keys: &Accepted) -> Result<()> {
    for (key, values) in keys {
        let Some(found) = q.get(key).filter(|v| !v.is_null()) else {
            continue;
        };
        if !values.contains(&found.to_string().as_str()) {
            return Err(refused(key, q));
        }
    }
    Ok(())
}

fn groups(q: &Value, bits: &str, size: &str, zero_offset: i32, unordered: bool) -> Result<Groups> {
    let bits = q
        .get(bits)
        .and_then(Value::as_u64)
        .ok_or_else(|| refused(bits, q))?;
    let size = match q.get(size).and_then(Value::as_i64) {
        Some(-1) => None,
        Some(n) if n > 0 => Some(usize::try_from(n).map_err(|_| refused(size, q))?),
        _ => return Err(refused(size, q)),
    };
    Ok(Groups {
        bits: bits as usize,
        size,
        zero_offset,
        unordered,
    })
}

fn block(q: &Value) -> Result<Option<[usize; 2]>> {
    let key = "weight_block_size";
    let Some(found) = q.get(key).filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let dims: Option<Vec<usize>> = found.as_array().and_then(|list| {
        let dims = list
            .iter()
            .map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok()));
        dims.collect()
    });
    match dims.as_deref() {
        Some(&[rows, cols]) if rows > 0 && cols > 0 => Ok(Some([rows, cols])),
        _ => Err(refused(key, q)),
    }
}

/// compressed-tensors describes its groups of layers; all of them must be 8-bit floats.
fn compressed(q: &Value) -> Result<()> {
    let groups = q.get("config_groups").and_then(Value::as_object);
    let float8 = |group: &Value| {
        let weights = &group["weights"];
        weights["type"] == "float" && weights["num_bits"] == 8
    };
    let fits = groups.is_some_and(|groups| !groups.is_empty() && groups.values().all(float8));
    let sparse = q
        .get("sparsity_config")
        .and_then(|s| s.get("format"))
        .filter(|f| *f != "dense");
    match (fits, sparse) {
        (true, None) => Ok(()),
        (false, _) => Err(refused("config_groups", q)),
        (_, Some(_)) => Err(refused("sparsity_config", q)),
    }
}
