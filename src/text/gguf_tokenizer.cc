// tokenizer.json text from the vocabulary of a GGUF file.

#include <string>
#include <unordered_map>

#include "text/tokenizer.h"

namespace baton::text {
namespace {

// GGUF names its pre-tokenizer instead of describing it. Each row restates the model family's published tokenizer.json.
struct PreTokenizer {
  std::string_view name;
  std::string_view normalizer;     // JSON
  std::string_view pre_tokenizer;  // JSON
  bool ignore_merges;              // a pre-token that is a vocabulary entry is taken whole
  bool adds_bos;                   // where tokenizer.ggml.add_bos_token is absent
};

constexpr std::string_view kNone = "null";
constexpr std::string_view kNfc = R"({"type":"NFC"})";
constexpr std::string_view kGpt2 = R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";
constexpr std::string_view kDigitsGpt2 = R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)"
                                         R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]})";
#define BATON_SPLIT(number)                                                                                         \
  R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|)"        \
  R"([^\\r\\n\\p{L}\\p{N}]?\\p{L}+|)" number R"(| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},)" \
  R"("behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]})"
constexpr std::string_view kLlama3 = BATON_SPLIT(R"(\\p{N}{1,3})");
constexpr std::string_view kQwen2 = BATON_SPLIT(R"(\\p{N})");
#undef BATON_SPLIT

constexpr PreTokenizer kPreTokenizers[] = {
    {"smollm", kNone, kDigitsGpt2, false, false}, {"starcoder", kNone, kDigitsGpt2, false, false},
    {"refact", kNone, kDigitsGpt2, false, false}, {"llama-bpe", kNone, kLlama3, true, true},
    {"llama3", kNone, kLlama3, true, true},       {"llama-v3", kNone, kLlama3, true, true},
    {"qwen2", kNfc, kQwen2, false, false},        {"deepseek-r1-qwen", kNfc, kQwen2, false, true},
    {"gpt-2", kNone, kGpt2, false, false},        {"default", kNone, kGpt2, false, false},
};

constexpr std::int32_t kUnknown = 2, kControl = 3, kUserDefined = 4;  // values of tokenizer.ggml.token_type

Status invalid(std::string message) { return Status(Code::kInvalidArgument, std::move(message)); }

const PreTokenizer* find_pre(std::string_view name) {
  for (const PreTokenizer& p : kPreTokenizers)
    if (p.name == name) return &p;
  return nullptr;
}

std::string supported_pres() {
  std::string names;
  for (const PreTokenizer& p : kPreTokenizers) names += (names.empty() ? "" : ", ") + std::string(p.name);
  return names;
}

void append_string(std::string_view s, std::string& out) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (char c : s) {
    auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20) {
      out += "\\u00";
      out += kHex[u >> 4];
      out += kHex[u & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

Status append_vocab(const GgufVocab& vocab, std::string& out) {
  std::unordered_map<std::string_view, std::size_t> seen;
  seen.reserve(vocab.tokens.size());
  for (std::size_t id = 0; id < vocab.tokens.size(); ++id) {
    auto [it, fresh] = seen.emplace(vocab.tokens[id], id);
    if (!fresh)
      return invalid("tokenizer.ggml.tokens: entry " + std::to_string(id) + " is the same as entry " + std::to_string(it->second) +
                     "; tokens must differ");
    if (id > 0) out += ',';
    append_string(vocab.tokens[id], out);
    out += ':' + std::to_string(id);
  }
  return {};
}

Status append_merges(const GgufVocab& vocab, std::string& out) {
  for (std::size_t i = 0; i < vocab.merges.size(); ++i) {
    std::string_view merge = vocab.merges[i];
    std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size())
      return invalid("tokenizer.ggml.merges: entry " + std::to_string(i) + " is not two tokens with a space between them");
    if (i > 0) out += ',';
    out += '[';
    append_string(merge.substr(0, space), out);
    out += ',';
    append_string(merge.substr(space + 1), out);
    out += ']';
  }
  return {};
}

void append_added_tokens(const GgufVocab& vocab, std::string& out) {
  bool first = true;
  for (std::size_t id = 0; id < vocab.types.size(); ++id) {
    std::int32_t type = vocab.types[id];
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    if (vocab.tokens[id].empty()) continue;
    if (!first) out += ',';
    first = false;
    out += "{\"id\":" + std::to_string(id) + ",\"content\":";
    append_string(vocab.tokens[id], out);
    out += R"(,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":)";
    out += type == kUserDefined ? "false}" : "true}";
  }
}

// The post-processor that adds BOS and EOS, or null.
void append_post_processor(const GgufVocab& vocab, bool bos, bool eos, std::string& out) {
  if (!bos && !eos) {
    out += "null";
    return;
  }
  auto special = [&](TokenId id, int type_id) {
    out += "{\"SpecialToken\":{\"id\":";
    append_string(vocab.tokens[static_cast<std::size_t>(id)], out);
    out += ",\"type_id\":" + std::to_string(type_id) + "}}";
  };
  auto sequence = [&](char name, int type_id) {
    if (bos) special(*vocab.bos, type_id), out += ',';
    out += std::string("{\"Sequence\":{\"id\":\"") + name + "\",\"type_id\":" + std::to_string(type_id) + "}}";
    if (eos) out += ',', special(*vocab.eos, type_id);
  };
  auto definition = [&](TokenId id) {
    const std::string& text = vocab.tokens[static_cast<std::size_t>(id)];
    append_string(text, out);
    out += ":{\"id\":";
    append_string(text, out);
    out += ",\"ids\":[" + std::to_string(id) + "],\"tokens\":[";
    append_string(text, out);
    out += "]}";
  };
  out += R"({"type":"TemplateProcessing","single":[)";
  sequence('A', 0);
  out += "],\"pair\":[";
  sequence('A', 0);
  out += ',';
  sequence('B', 1);
  out += "],\"special_tokens\":{";
  if (bos) definition(*vocab.bos);
  if (bos && eos && *vocab.bos != *vocab.eos) out += ',';
  if (eos && !(bos && *vocab.bos == *vocab.eos)) definition(*vocab.eos);
  out += "}}";
}

Status check_id(const std::optional<TokenId>& id, std::string_view key, const GgufVocab& vocab) {
  if (id && (*id < 0 || static_cast<std::size_t>(*id) >= vocab.tokens.size()))
    return invalid(std::string(key) + " is " + std::to_string(*id) + ", but there are only " + std::to_string(vocab.tokens.size()) +
                   " tokens");
  return {};
}

}  // namespace

Result<std::string> tokenizer_json_from_gguf(const GgufVocab& vocab) {
  if (vocab.model != "gpt2")
    return invalid(
        "tokenizer.ggml.model is '" + vocab.model +
        "'; supported in a GGUF file: 'gpt2' (byte-level BPE). For this model use the Hugging Face folder with its tokenizer.json");
  const PreTokenizer* pre = find_pre(vocab.pre);
  if (pre == nullptr)
    return invalid((vocab.pre.empty() ? std::string("tokenizer.ggml.pre is missing") : "tokenizer.ggml.pre is '" + vocab.pre + "'") +
                   "; supported: " + supported_pres());
  if (vocab.tokens.empty()) return invalid("tokenizer.ggml.tokens is missing or empty");
  if (!vocab.types.empty() && vocab.types.size() != vocab.tokens.size())
    return invalid("tokenizer.ggml.token_type has " + std::to_string(vocab.types.size()) + " entries, tokenizer.ggml.tokens " +
                   std::to_string(vocab.tokens.size()));
  BATON_RETURN_IF_ERROR(check_id(vocab.bos, "tokenizer.ggml.bos_token_id", vocab));
  BATON_RETURN_IF_ERROR(check_id(vocab.eos, "tokenizer.ggml.eos_token_id", vocab));
  bool add_bos = vocab.add_bos.value_or(pre->adds_bos && vocab.bos.has_value());
  bool add_eos = vocab.add_eos.value_or(false);
  if (add_bos && !vocab.bos) return invalid("tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is missing");
  if (add_eos && !vocab.eos) return invalid("tokenizer.ggml.add_eos_token is true, but tokenizer.ggml.eos_token_id is missing");

  std::string out;
  out.reserve(vocab.tokens.size() * 48 + vocab.merges.size() * 24);
  out += R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)";
  append_added_tokens(vocab, out);
  out += "],\"normalizer\":";
  out += pre->normalizer;
  out += ",\"pre_tokenizer\":";
  out += pre->pre_tokenizer;
  out += ",\"post_processor\":";
  append_post_processor(vocab, add_bos, add_eos, out);
  out += R"(,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE",)";
  out += R"("dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,)";
  out += R"("byte_fallback":false,"ignore_merges":)";
  out += pre->ignore_merges ? "true" : "false";
  out += ",\"vocab\":{";
  BATON_RETURN_IF_ERROR(append_vocab(vocab, out));
  out += "},\"merges\":[";
  BATON_RETURN_IF_ERROR(append_merges(vocab, out));
  out += "]}}";
  return out;
}

}  // namespace baton::text
