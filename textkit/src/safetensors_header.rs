//! The header of a safetensors file, believed only as far as the file's size bears it out.

use crate::{invalid, Failure};
use safetensors::tensor::Metadata;
use serde_json::json;

const PREFIX: u64 = 8; // little-endian length of the JSON that follows
const MAX_HEADER: u64 = 100_000_000; // the format's own limit

/// `head`: the file's first bytes, at least through the end of its header. Offsets in the answer count from the start of the file.
pub fn describe(head: &[u8], file_size: u64) -> Result<String, Failure> {
    let length = match head.get(..8).map(<[u8; 8]>::try_from) {
        Some(Ok(bytes)) => u64::from_le_bytes(bytes),
        _ => return Err(invalid(format!("safetensors: the file has {file_size} bytes, too few for a header"))),
    };
    if length > MAX_HEADER {
        return Err(invalid(format!(
            "safetensors: a header of {length} bytes is over the format's limit of {MAX_HEADER}; not a safetensors file?"
        )));
    }
    let data_begin = PREFIX + length;
    if data_begin > file_size {
        return Err(invalid(format!("safetensors: the header says it has {length} bytes, but the file ends at byte {file_size}")));
    }
    let Some(json_text) = head.get(8..data_begin as usize) else {
        return Err(invalid(format!("safetensors: {} bytes were given, the header needs {data_begin}", head.len())));
    };
    let metadata: Metadata = serde_json::from_slice(json_text).map_err(|e| invalid(format!("safetensors: bad header: {e}")))?;
    let data = metadata.data_len() as u64;
    if data_begin.checked_add(data) != Some(file_size) {
        return Err(invalid(format!(
            "safetensors: the header describes {data} bytes of tensors, but the file has {} after the header; truncated or damaged",
            file_size - data_begin
        )));
    }
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        if let Some(info) = metadata.info(&name) {
            tensors.push(json!({
                "name": name,
                "dtype": info.dtype.to_string(),
                "shape": info.shape,
                "begin": data_begin + info.data_offsets.0 as u64,
                "end": data_begin + info.data_offsets.1 as u64,
            }));
        }
    }
    let mut user: Vec<_> = metadata.metadata().iter().flatten().collect();
    user.sort();
    let user: serde_json::Map<String, serde_json::Value> = user.into_iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    Ok(json!({"metadata": user, "tensors": tensors}).to_string())
}
