#include "model/safetensors.h"

#include <filesystem>
#include <set>
#include <string_view>

#include "model/json_object.h"
#include "model/mapped_file.h"
#include "textkit.h"

namespace baton::model {
namespace {

using Tensors = std::map<std::string, StoredTensor, std::less<>>;

std::string take(tk_bytes bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data), bytes.len);
  tk_bytes_free(bytes);
  return text;
}

Result<nlohmann::json> read_header(const MappedFile& file) {
  tk_bytes out{}, error{};
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(file.data());
  if (tk_safetensors_header(bytes, file.size(), file.size(), &out, &error) != TK_OK) {
    return {Code::kInvalidArgument, file.path() + ": " + take(error)};
  }
  return nlohmann::json::parse(take(out), nullptr, false);
}

Status add_file(const std::string& path, Tensors& tensors) {
  BATON_ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  BATON_ASSIGN_OR_RETURN(const nlohmann::json header, read_header(*file));
  for (const auto& entry : header["tensors"]) {
    const auto name = entry["name"].get<std::string>();
    const auto dtype = entry["dtype"].get<std::string>();
    StoredTensor t;
    if (dtype == "F32")
      t.format = device::WeightFormat::kF32;
    else if (dtype == "F16")
      t.format = device::WeightFormat::kF16;
    else if (dtype == "BF16")
      t.format = device::WeightFormat::kBF16;
    else
      t.unsupported = dtype;
    t.shape = entry["shape"].get<std::vector<std::int64_t>>();
    const auto begin = entry["begin"].get<std::size_t>(), end = entry["end"].get<std::size_t>();
    t.data = file->data() + begin;
    t.bytes = end - begin;
    t.keep_alive = file;
    if (!tensors.emplace(name, std::move(t)).second) {
      return {Code::kInvalidArgument, path + ": tensor \"" + name + "\" is in another shard as well"};
    }
  }
  return {};
}

}  // namespace

Status read_safetensors_folder(const std::string& folder, Tensors& tensors) {
  const std::string single = folder + "/model.safetensors", index = folder + "/model.safetensors.index.json";
  if (std::filesystem::exists(single)) return add_file(single, tensors);
  if (!std::filesystem::exists(index)) {
    return {Code::kNotFound, folder + ": neither model.safetensors nor model.safetensors.index.json is there"};
  }
  BATON_ASSIGN_OR_RETURN(const std::string text, read_text_file(index));
  BATON_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::parse(index, text));
  const nlohmann::json* map = json.get("weight_map");
  if (map == nullptr || !map->is_object()) return json.wrong("weight_map", "an object of tensor name: file name");
  std::set<std::string> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string()) return json.wrong("weight_map", "an object of tensor name: file name");
    const auto file = shard.get<std::string>();
    if (file.find('/') != std::string::npos || !file.ends_with(".safetensors")) {
      return {Code::kInvalidArgument,
              index + ": field \"weight_map." + name + "\" is \"" + file + "\", not a .safetensors file of this folder"};
    }
    shards.insert(file);
  }
  for (const std::string& shard : shards) BATON_RETURN_IF_ERROR(add_file(folder + "/" + shard, tensors));
  for (const auto& [name, shard] : map->items()) {
    if (!tensors.contains(name)) {
      return {Code::kInvalidArgument,
              index + ": field \"weight_map." + name + "\" names " + shard.get<std::string>() + ", which does not have that tensor"};
    }
  }
  return {};
}

}  // namespace baton::model
