#include "text/tokenizer.h"

#include "text/ffi.h"

namespace baton::text {
namespace {

static_assert(sizeof(TokenId) == sizeof(std::uint32_t));

const tk_tokenizer* get(const void* handle) { return static_cast<const tk_tokenizer*>(handle); }

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_json(std::string_view tokenizer_json) {
  tk_tokenizer* handle = nullptr;
  tk_bytes error{};
  if (int code = tk_tokenizer_new(bytes_of(tokenizer_json), tokenizer_json.size(), &handle, &error); code != TK_OK)
    return to_status(code, error);
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  tokenizer->handle_ = handle;
  return tokenizer;
}

Tokenizer::~Tokenizer() { tk_tokenizer_free(static_cast<tk_tokenizer*>(handle_)); }

Result<std::vector<TokenId>> Tokenizer::encode(std::string_view utf8, bool add_special) const {
  tk_ids ids{};
  tk_bytes error{};
  if (int code = tk_tokenizer_encode(get(handle_), bytes_of(utf8), utf8.size(), add_special, &ids, &error); code != TK_OK)
    return to_status(code, error);
  std::vector<TokenId> out(ids.data, ids.data + ids.len);
  tk_ids_free(ids);
  return out;
}

std::string Tokenizer::decode(const std::vector<TokenId>& ids, bool skip_special) const {
  tk_bytes text{};
  tk_bytes error{};
  const auto* data = reinterpret_cast<const std::uint32_t*>(ids.data());
  int code = tk_tokenizer_decode(get(handle_), data, ids.size(), skip_special, &text, &error);
  // Ids are only looked up, so the library has no way to refuse them.
  BATON_CHECK_MSG(code == TK_OK, take(error));
  return take(text);
}

std::string_view Tokenizer::token_bytes(TokenId id) const {
  std::size_t len = 0;
  const std::uint8_t* data = tk_tokenizer_token_bytes(get(handle_), static_cast<std::uint32_t>(id), &len);
  return {reinterpret_cast<const char*>(data), len};
}

bool Tokenizer::is_special(TokenId id) const { return tk_tokenizer_is_special(get(handle_), static_cast<std::uint32_t>(id)); }

std::optional<TokenId> Tokenizer::token_to_id(std::string_view token) const {
  std::int64_t id = tk_tokenizer_token_to_id(get(handle_), bytes_of(token), token.size());
  if (id < 0) return std::nullopt;
  return static_cast<TokenId>(id);
}

std::int32_t Tokenizer::vocab_size() const { return static_cast<std::int32_t>(tk_tokenizer_vocab_size(get(handle_))); }

}  // namespace baton::text
