#pragma once
// Token ids <-> text. One implementation (textkit, over the Hugging Face tokenizers library) serves tokenizer.json and the vocabulary that
// a GGUF file embeds; a Tokenizer is immutable and may be used from several threads.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace baton::text {

// The tokenizer fields of a GGUF file (keys tokenizer.ggml.*), as model/ reads them.
struct GgufVocab {
  std::string model;                // tokenizer.ggml.model; "gpt2" (byte-level BPE) is supported
  std::string pre;                  // tokenizer.ggml.pre: which pre-tokenizer, e.g. "smollm", "llama-bpe", "qwen2", "deepseek-r1-qwen"
  std::vector<std::string> tokens;  // by id
  std::vector<std::int32_t> types;  // by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
  std::vector<std::string> merges;  // "left right", by rank
  std::optional<TokenId> bos, eos, unk, pad;
  std::optional<bool> add_bos, add_eos;
};
// The tokenizer.json that means the same. Errors name the field and what is supported.
Result<std::string> tokenizer_json_from_gguf(const GgufVocab& vocab);

class Tokenizer {
 public:
  static Result<std::unique_ptr<Tokenizer>> from_json(std::string_view tokenizer_json);
  ~Tokenizer();

  // `add_special` lets the tokenizer's post-processor add its BOS/EOS. Special tokens in the text are recognised as such.
  // kInvalidArgument if `utf8` is not valid UTF-8.
  Result<std::vector<TokenId>> encode(std::string_view utf8, bool add_special) const;
  // Whole-sequence decode; invalid UTF-8 becomes U+FFFD.
  std::string decode(const std::vector<TokenId>& ids, bool skip_special) const;
  // The raw bytes of one token (a byte-level token may be part of a character); empty for an id out of range. Borrowed from the tokenizer.
  std::string_view token_bytes(TokenId id) const;
  bool is_special(TokenId id) const;
  std::optional<TokenId> token_to_id(std::string_view token) const;
  std::int32_t vocab_size() const;  // the highest id plus one, added tokens included

 private:
  Tokenizer() = default;
  void* handle_ = nullptr;  // textkit's
};

}  // namespace baton::text
