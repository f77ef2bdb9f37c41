// A safetensors file: an error that names the file, or tensors that lie inside it.

#include "model/safetensors.h"

#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "tests/fuzz/fuzz.h"

namespace baton::fuzz {
namespace {

// A folder whose model.safetensors is memory.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "fuzz-XXXXXX").string();
    BATON_CHECK(fd_ >= 0 && ::mkdtemp(name.data()) != nullptr);
    path_ = name;
    std::filesystem::create_symlink("/proc/self/fd/" + std::to_string(fd_), path_ + "/model.safetensors");
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& write(std::string_view bytes) {
    BATON_CHECK(::ftruncate(fd_, 0) == 0 && ::pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    return path_;
  }

 private:
  const int fd_ = ::memfd_create("fuzz", MFD_CLOEXEC);
  std::string path_;
};

std::string file(const std::string& header, std::size_t data_bytes) {
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  return out + header + std::string(data_bytes, 'x');
}

}  // namespace

void run(std::string_view input) {
  static Folder folder;
  const std::string& path = folder.write(input);
  std::map<std::string, model::StoredTensor, std::less<>> tensors;
  const Status status = model::read_safetensors_folder(path, tensors);
  if (!status.ok()) {
    BATON_CHECK_MSG(status.message().starts_with(path), status.to_string());
    return;
  }
  for (const auto& [name, tensor] : tensors) {
    for (const std::int64_t extent : tensor.shape) BATON_CHECK(extent >= 0);
    BATON_CHECK(tensor.bytes <= input.size());
    if (tensor.bytes == 0) continue;
    [[maybe_unused]] static volatile std::byte sink;
    sink = tensor.data[0];
    sink = tensor.data[tensor.bytes - 1];
  }
}

std::vector<std::string> seeds() {
  return {
      file("{}", 0),
      file(R"({"__metadata__":{"format":"pt"},"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})", 16),
      file(R"({"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]}})", 12),
      file(R"({"q":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},"e":{"dtype":"F32","shape":[0],"data_offsets":[3,3]}})", 3),
  };
}

}  // namespace baton::fuzz
