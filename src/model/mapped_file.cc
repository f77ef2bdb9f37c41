#include "model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace baton::model {
namespace {

constexpr std::size_t kTextBytesMax = 64u << 20;

Status system_error(const std::string& path, const char* what) {
  const int error = errno;
  return {error == ENOENT ? Code::kNotFound : Code::kInvalidArgument, path + ": cannot " + what + ": " + std::strerror(error)};
}

}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return system_error(path, "open");
  struct stat info{};
  if (::fstat(fd, &info) != 0) {
    Status status = system_error(path, "stat");
    ::close(fd);
    return status;
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return {Code::kInvalidArgument, path + ": not a regular file"};
  }
  std::shared_ptr<MappedFile> file(new MappedFile());
  file->path_ = path;
  if (info.st_size > 0) {
    const auto size = static_cast<std::size_t>(info.st_size);
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) {
      Status status = system_error(path, "map");
      ::close(fd);
      return status;
    }
    file->data_ = static_cast<const std::byte*>(address);
    file->size_ = size;
  }
  ::close(fd);
  return std::shared_ptr<const MappedFile>(std::move(file));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<std::string> read_text_file(const std::string& path) {
  BATON_ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  if (file->size() > kTextBytesMax) {
    return {Code::kInvalidArgument, path + ": " + std::to_string(file->size()) + " bytes; at most 64 MB are read of a text file"};
  }
  return std::string(file->text());
}

}  // namespace baton::model
