#ifndef TEXTKIT_H_
#define TEXTKIT_H_
// The C border of textkit, the one Rust library that Baton links: tokenizers, chat templates, the safetensors header.
//
// Text is bytes and a length; a null pointer with length 0 is empty text. Handles are immutable: any number of threads may use one at
// once. Functions return TK_OK, or another code with a message in `error` (free it with tk_bytes_free; nothing else is written then).
// `error` may be null. No function blocks, logs, or touches files and network.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  TK_OK = 0,
  TK_INVALID = 1,   // the input is at fault; the message is for the user
  TK_INTERNAL = 2,  // a bug in textkit or below it (a panic, caught)
};

typedef struct {
  uint8_t* data;
  size_t len;
} tk_bytes;  // owned by the receiver
void tk_bytes_free(tk_bytes bytes);

typedef struct {
  uint32_t* data;
  size_t len;
} tk_ids;  // owned by the receiver
void tk_ids_free(tk_ids ids);

// ---- Tokenizer

typedef struct tk_tokenizer tk_tokenizer;

// From the text of a tokenizer.json. Its truncation and padding, if any, are switched off.
int tk_tokenizer_new(const uint8_t* json, size_t len, tk_tokenizer** out, tk_bytes* error);
void tk_tokenizer_free(tk_tokenizer* tokenizer);

// TK_INVALID if the text is not UTF-8. `add_special` runs the post-processor (BOS, EOS); special tokens in the text are always recognised.
int tk_tokenizer_encode(const tk_tokenizer* tokenizer, const uint8_t* text, size_t len, bool add_special, tk_ids* out, tk_bytes* error);
// UTF-8; bytes that are not become U+FFFD. Ids outside the vocabulary are left out.
int tk_tokenizer_decode(const tk_tokenizer* tokenizer, const uint32_t* ids, size_t len, bool skip_special, tk_bytes* out, tk_bytes* error);
// The bytes that one token stands for, perhaps a part of a character; borrowed from the tokenizer. Length 0 for an unknown id.
const uint8_t* tk_tokenizer_token_bytes(const tk_tokenizer* tokenizer, uint32_t id, size_t* len);
bool tk_tokenizer_is_special(const tk_tokenizer* tokenizer, uint32_t id);
int64_t tk_tokenizer_token_to_id(const tk_tokenizer* tokenizer, const uint8_t* token, size_t len);  // -1 if there is none
// The highest id plus one, added tokens included.
size_t tk_tokenizer_vocab_size(const tk_tokenizer* tokenizer);

// ---- Chat template

typedef struct tk_template tk_template;

// Compiles a Jinja template; TK_INVALID with the line if it does not parse.
int tk_template_new(const uint8_t* source, size_t source_len, const uint8_t* bos, size_t bos_len, const uint8_t* eos, size_t eos_len,
                    tk_template** out, tk_bytes* error);
void tk_template_free(tk_template* chat_template);

typedef struct {
  const uint8_t* messages;  // a JSON array
  size_t messages_len;
  const uint8_t* tools;  // a JSON array, or empty for none
  size_t tools_len;
  const uint8_t* kwargs;  // a JSON object of further variables, or empty; must not name messages, tools or add_generation_prompt
  size_t kwargs_len;
  bool add_generation_prompt;
  int64_t now_unix_s;  // what strftime_now sees, shown in local time
} tk_template_input;

// TK_INVALID with the template's own text if it calls raise_exception, and with line and reason if it fails otherwise.
int tk_template_render(const tk_template* chat_template, const tk_template_input* input, tk_bytes* out, tk_bytes* error);

// ---- safetensors

// Reads and checks the header of a safetensors file of `file_size` bytes whose first `len` bytes are at `head`; these must reach to the end
// of the header (8 bytes of little-endian length n, then n bytes of JSON). Answers with JSON, tensors in file order, offsets from the
// start of the file:
//   {"metadata":{"format":"pt"},"tensors":[{"name":"a","dtype":"BF16","shape":[2,3],"begin":128,"end":140}]}
// TK_INVALID if header and size disagree anywhere: a length beyond the file, holes, overlaps, a shape that does not fill its range,
// overflow, missing or surplus bytes.
int tk_safetensors_header(const uint8_t* head, size_t len, uint64_t file_size, tk_bytes* out, tk_bytes* error);

#ifdef __cplusplus
}
#endif
#endif  // TEXTKIT_H_
