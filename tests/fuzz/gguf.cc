// GGUF files, from the header to the tokenizer's text: an error that names the file, or a model whose every tensor can be read.

#include <sys/mman.h>
#include <unistd.h>

#include "model/contents.h"
#include "model/gguf_bytes.h"
#include "tests/fuzz/fuzz.h"

namespace baton::fuzz {
namespace {

using model::testing::Bytes;
using model::testing::GgufBytes;

// A file in memory, opened by its name in /proc.
class MemoryFile {
 public:
  const std::string& write(std::string_view bytes) {
    BATON_CHECK(::ftruncate(fd_, 0) == 0 && ::pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    return path_;
  }

 private:
  const int fd_ = ::memfd_create("fuzz", MFD_CLOEXEC);
  const std::string path_ = "/proc/self/fd/" + std::to_string(fd_);
};

// One byte at each end: reading them all would only find what the sanitizer finds here.
void touch(const std::byte* data, std::size_t bytes) {
  if (bytes == 0) return;
  [[maybe_unused]] static volatile std::byte sink;
  sink = data[0];
  sink = data[bytes - 1];
}

// One layer of a model as small as the rules allow.
GgufBytes small_model() {
  GgufBytes g;
  g.str("general.architecture", "llama").u32("llama.block_count", 1).u32("llama.embedding_length", 32).u32("llama.feed_forward_length", 32);
  g.u32("llama.attention.head_count", 2).u32("llama.attention.head_count_kv", 1).u32("llama.context_length", 64);
  g.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).f32("llama.rope.freq_base", 10000.0f);
  g.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "smollm").strs("tokenizer.ggml.tokens", {"a", "b", "ab", "<s>"});
  g.strs("tokenizer.ggml.merges", {"a b"}).i32s("tokenizer.ggml.token_type", {1, 1, 1, 3});
  g.u32("tokenizer.ggml.bos_token_id", 3).u32("tokenizer.ggml.eos_token_id", 3).flag("tokenizer.ggml.add_bos_token", true);
  g.str("tokenizer.chat_template", "{{ messages[0].content }}");
  return g;
}

}  // namespace

void run(std::string_view input) {
  static MemoryFile file;
  const std::string& path = file.write(input);
  const auto gguf = model::GgufFile::open(path);
  if (!gguf.ok()) {
    BATON_CHECK_MSG(gguf.status().message().starts_with(path), gguf.status().to_string());
    return;
  }
  for (const auto& [name, tensor] : (*gguf)->tensors()) touch(tensor.data, tensor.bytes);
  (void)model::generation_from_gguf(**gguf);
  (void)model::text_from_gguf(**gguf).ok();

  const auto files = model::ModelFiles::open(path);
  if (!files.ok()) {
    BATON_CHECK(!files.status().message().empty());
    return;
  }
  (void)(*files)->digest();
  (void)(*files)->dominant_format();
  (void)(*files)->weight_bytes();
  (void)(*files)->text().ok();
  for (const auto& wanted : model::wanted_tensors((*files)->config())) {
    if (wanted.cols == 0) {
      BATON_CHECK((*files)->vector(wanted.canonical).ok());
      continue;
    }
    const auto weight = (*files)->weight(wanted.canonical);
    BATON_CHECK(weight.ok());
    touch(weight->data, device::block_bytes(weight->format));
  }
}

std::vector<std::string> seeds() {
  const std::string zeros(32 * 32 * 4, '\0');
  GgufBytes bare;
  bare.u32("general.alignment", 8).key("i", 11, Bytes().put<std::int64_t>(-5).text).key("f", 12, Bytes().put(0.5).text);
  bare.alignment = 8;
  bare.f32s("x", {2, 2}, {1, 2, 3, 4}).tensor("q", {1, 32}, 8, std::string(34, 'x')).tensor("k", {1, 256}, 14, std::string(210, 'x'));
  GgufBytes tensors = small_model();
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.attn_output.weight"}) tensors.tensor(name, {32, 32}, 8, zeros.substr(0, 32 * 34));
  for (const char* name : {"blk.0.attn_k.weight", "blk.0.attn_v.weight"}) tensors.tensor(name, {16, 32}, 8, zeros.substr(0, 16 * 34));
  for (const char* name : {"blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"})
    tensors.tensor(name, {32, 32}, 2, zeros.substr(0, 32 * 18));
  for (const char* name : {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"})
    tensors.f32s(name, {32}, std::vector<float>(32, 1.0f));
  tensors.tensor("token_embd.weight", {4, 32}, 1, zeros.substr(0, 4 * 32 * 2));
  GgufBytes split;
  split.key("split.count", 2, Bytes().put<std::uint16_t>(1).text).key("split.no", 2, Bytes().put<std::uint16_t>(0).text);
  split.key("split.tensors.count", 5, Bytes().put<std::int32_t>(0).text);
  return {bare.bytes(), small_model().bytes(), tensors.bytes(), split.bytes()};
}

}  // namespace baton::fuzz
