#pragma once
// Safetensors files, mapped. The header is checked by textkit (the reference implementation of the format). Private to model/.

#include <map>
#include <string>

#include "base/status.h"
#include "model/contents.h"

namespace baton::model {

// Adds the tensors of the folder's model.safetensors, or of all the shards that model.safetensors.index.json names.
Status read_safetensors_folder(const std::string& folder, std::map<std::string, StoredTensor, std::less<>>& tensors);

}  // namespace baton::model
