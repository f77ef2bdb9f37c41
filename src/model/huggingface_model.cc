// A Hugging Face folder as a model.

#include <filesystem>

#include "model/contents.h"
#include "model/json_object.h"
#include "model/mapped_file.h"
#include "model/safetensors.h"

namespace baton::model {
namespace {

// "" if there is no such file.
Result<std::string> optional_file(const std::string& path) {
  if (!std::filesystem::exists(path)) return std::string();
  return read_text_file(path);
}

// "<s>", {"content": "<s>", ...}, or nothing.
Result<std::string> token_text(const JsonObject& json, const std::string& field) {
  const nlohmann::json* v = json.get(field);
  if (v == nullptr) return std::string();
  if (v->is_string()) return v->get<std::string>();
  if (v->is_object() && v->contains("content") && (*v)["content"].is_string()) return (*v)["content"].get<std::string>();
  return json.wrong(field, "a string, or an object with \"content\"");
}

// A string, or a list of named templates of which "default" is meant.
Result<std::string> chat_template(const JsonObject& json) {
  const nlohmann::json* v = json.get("chat_template");
  if (v == nullptr) return std::string();
  if (v->is_string()) return v->get<std::string>();
  if (v->is_array()) {
    for (const auto& entry : *v) {
      if (entry.is_object() && entry.value("name", nlohmann::json()) == "default" && entry.contains("template") &&
          entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
  }
  return json.wrong("chat_template", "a string, or a list that has a template named \"default\"");
}

}  // namespace

Result<TextFiles> text_from_folder(const std::string& folder) {
  TextFiles text;
  BATON_ASSIGN_OR_RETURN(text.tokenizer_json, read_text_file(folder + "/tokenizer.json"));
  const std::string config_path = folder + "/tokenizer_config.json";
  BATON_ASSIGN_OR_RETURN(const std::string config, optional_file(config_path));
  if (!config.empty()) {
    BATON_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::parse(config_path, config));
    BATON_ASSIGN_OR_RETURN(text.bos_token, token_text(json, "bos_token"));
    BATON_ASSIGN_OR_RETURN(text.eos_token, token_text(json, "eos_token"));
    BATON_ASSIGN_OR_RETURN(text.add_bos, json.boolean("add_bos_token", false));
    BATON_ASSIGN_OR_RETURN(text.chat_template, chat_template(json));
  }
  // Where the file exists, it is the one that transformers uses.
  BATON_ASSIGN_OR_RETURN(const std::string jinja, optional_file(folder + "/chat_template.jinja"));
  if (!jinja.empty()) text.chat_template = jinja;
  return text;
}

Result<Contents> read_huggingface_model(const std::string& folder) {
  Contents contents;
  contents.path = folder;
  contents.naming = Naming::kHuggingFace;
  const std::string config_path = folder + "/config.json", generation_path = folder + "/generation_config.json";
  BATON_ASSIGN_OR_RETURN(const std::string config, read_text_file(config_path));
  BATON_ASSIGN_OR_RETURN(contents.config, config_from_json(config_path, config));
  BATON_ASSIGN_OR_RETURN(const std::string generation, optional_file(generation_path));
  BATON_ASSIGN_OR_RETURN(contents.defaults, generation_from_json(generation_path, generation, config_path, config));
  BATON_RETURN_IF_ERROR(read_safetensors_folder(folder, contents.tensors));
  if (!contents.tensors.contains("lm_head.weight")) contents.config.tied_embeddings = true;
  contents.text = [folder] { return text_from_folder(folder); };
  return contents;
}

}  // namespace baton::model
