#include "model/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>

// The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything is little endian, and so are the machines we run on.

namespace baton::model {
namespace {

static_assert(std::endian::native == std::endian::little);

using device::WeightFormat;

constexpr std::string_view kSupported = "F32, F16, BF16, Q8_0, Q5_0, Q5_1, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K";
constexpr std::uint64_t kKeyBytesMax = 65535;
constexpr std::uint32_t kDimsMax = 4;

enum ValueType : std::uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

// The types that the format numbers; of those without a format here we know the name, no more.
struct GgmlType {
  std::uint32_t number;
  std::string_view name;
  std::optional<WeightFormat> format = std::nullopt;
};

constexpr std::array kTypes = {
    GgmlType{0, "F32", WeightFormat::kF32},
    GgmlType{1, "F16", WeightFormat::kF16},
    GgmlType{2, "Q4_0", WeightFormat::kQ4_0},
    GgmlType{3, "Q4_1", WeightFormat::kQ4_1},
    GgmlType{6, "Q5_0", WeightFormat::kQ5_0},
    GgmlType{7, "Q5_1", WeightFormat::kQ5_1},
    GgmlType{8, "Q8_0", WeightFormat::kQ8_0},
    GgmlType{12, "Q4_K", WeightFormat::kQ4_K},
    GgmlType{13, "Q5_K", WeightFormat::kQ5_K},
    GgmlType{14, "Q6_K", WeightFormat::kQ6_K},
    GgmlType{30, "BF16", WeightFormat::kBF16},
    GgmlType{9, "Q8_1"},
    GgmlType{10, "Q2_K"},
    GgmlType{11, "Q3_K"},
    GgmlType{15, "Q8_K"},
    GgmlType{16, "IQ2_XXS"},
    GgmlType{17, "IQ2_XS"},
    GgmlType{18, "IQ3_XXS"},
    GgmlType{19, "IQ1_S"},
    GgmlType{20, "IQ4_NL"},
    GgmlType{21, "IQ3_S"},
    GgmlType{22, "IQ2_S"},
    GgmlType{23, "IQ4_XS"},
    GgmlType{24, "I8"},
    GgmlType{25, "I16"},
    GgmlType{26, "I32"},
    GgmlType{27, "I64"},
    GgmlType{28, "F64"},
    GgmlType{29, "IQ1_M"},
    GgmlType{34, "TQ1_0"},
    GgmlType{35, "TQ2_0"},
    GgmlType{39, "MXFP4"},
};

// Reads forward through a file; the first read beyond the end makes every later one return zero, and status() says where it was.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file) {}

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  std::size_t position() const { return position_; }
  std::size_t remaining() const { return file_.size() - position_; }
  void fail(const std::string& message) {
    if (ok()) status_ = Status(Code::kInvalidArgument, file_.path() + ": " + message);
  }

  template <class T>
  T read(const std::string& what) {
    T value{};
    if (!wants(sizeof(T), what)) return value;
    std::memcpy(&value, file_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  std::string string(const std::string& what, std::uint64_t bytes_max = std::numeric_limits<std::uint64_t>::max()) {
    const auto length = read<std::uint64_t>("the length of " + what);
    if (ok() && length > bytes_max) fail(what + " is " + std::to_string(length) + " bytes long; at most " + std::to_string(bytes_max));
    if (!wants(length, what)) return {};
    std::string text(reinterpret_cast<const char*>(file_.data() + position_), length);
    position_ += length;
    return text;
  }

  // A count of things that take at least `least_bytes` each: one that cannot fit is refused before anything is allocated for it.
  std::uint64_t count(std::uint64_t least_bytes, const std::string& what) {
    const auto n = read<std::uint64_t>("the number of " + what);
    if (ok() && n > remaining() / least_bytes) {
      fail("it says that it has " + std::to_string(n) + " " + what + ", but only " + std::to_string(remaining()) +
           " bytes follow; the file is damaged or truncated");
    }
    return ok() ? n : 0;
  }

 private:
  bool wants(std::uint64_t bytes, const std::string& what) {
    if (!ok()) return false;
    if (bytes <= remaining()) return true;
    fail(what + " needs " + std::to_string(bytes) + " bytes at offset " + std::to_string(position_) + ", but the file has only " +
         std::to_string(file_.size()) + "; it is damaged or truncated");
    return false;
  }

  const MappedFile& file_;
  std::size_t position_ = 0;
  Status status_;
};

std::uint64_t least_bytes(std::uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    case kString:
    case kU64:
    case kI64:
    case kF64:
      return 8;
    default:
      return 0;  // no such type, or an array
  }
}

bool read_bool(Cursor& cursor, const std::string& what) {
  const auto byte = cursor.read<std::uint8_t>(what);
  if (byte > 1) cursor.fail(what + " is the bool " + std::to_string(byte) + "; only 0 and 1 are bools");
  return byte == 1;
}

GgufValue read_scalar(Cursor& cursor, std::uint32_t type, const std::string& what) {
  switch (type) {
    case kU8:
      return std::uint64_t{cursor.read<std::uint8_t>(what)};
    case kI8:
      return std::int64_t{cursor.read<std::int8_t>(what)};
    case kU16:
      return std::uint64_t{cursor.read<std::uint16_t>(what)};
    case kI16:
      return std::int64_t{cursor.read<std::int16_t>(what)};
    case kU32:
      return std::uint64_t{cursor.read<std::uint32_t>(what)};
    case kI32:
      return std::int64_t{cursor.read<std::int32_t>(what)};
    case kF32:
      return double{cursor.read<float>(what)};
    case kBool:
      return read_bool(cursor, what);
    case kString:
      return cursor.string(what);
    case kU64:
      return cursor.read<std::uint64_t>(what);
    case kI64:
      return cursor.read<std::int64_t>(what);
    case kF64:
      return cursor.read<double>(what);
    default:
      cursor.fail(what + " has the unknown value type " + std::to_string(type));
      return std::uint64_t{0};
  }
}

std::int64_t clamp_to_signed(std::uint64_t value) {
  return static_cast<std::int64_t>(std::min<std::uint64_t>(value, std::numeric_limits<std::int64_t>::max()));
}

GgufValue read_array(Cursor& cursor, const std::string& what) {
  const auto type = cursor.read<std::uint32_t>("the element type of " + what);
  if (cursor.ok() && type == kArray) cursor.fail(what + " is an array of arrays, which is not supported");
  if (cursor.ok() && least_bytes(type) == 0) cursor.fail(what + " has the unknown element type " + std::to_string(type));
  if (!cursor.ok()) return std::uint64_t{0};
  const std::uint64_t n = cursor.count(least_bytes(type), "elements of " + what);
  auto array = std::make_shared<GgufArray>();
  for (std::uint64_t i = 0; i < n && cursor.ok(); ++i) {
    GgufValue value = read_scalar(cursor, type, what);
    if (auto* s = std::get_if<std::string>(&value)) array->strings.push_back(std::move(*s));
    if (auto* u = std::get_if<std::uint64_t>(&value)) array->integers.push_back(clamp_to_signed(*u));
    if (auto* s = std::get_if<std::int64_t>(&value)) array->integers.push_back(*s);
    if (auto* d = std::get_if<double>(&value)) array->floats.push_back(*d);
    if (auto* b = std::get_if<bool>(&value)) array->bools.push_back(*b);
  }
  return array;
}

void read_header(Cursor& cursor) {
  const auto magic = cursor.read<std::array<char, 4>>("the magic");
  if (cursor.ok() && std::string_view(magic.data(), 4) != "GGUF") cursor.fail("not a GGUF file (it does not start with \"GGUF\")");
  const auto version = cursor.read<std::uint32_t>("the version");
  if (cursor.ok() && (version & 0xffff) == 0) cursor.fail("a big-endian GGUF file; only little-endian ones are supported");
  if (cursor.ok() && version != 2 && version != 3) {
    cursor.fail("GGUF version " + std::to_string(version) + "; versions 2 and 3 are supported");
  }
}

// Everything about a tensor but where its data is: shape, type and size.
GgufTensor read_tensor_info(Cursor& cursor, std::uint64_t& offset) {
  GgufTensor tensor;
  tensor.name = cursor.string("a tensor's name", kKeyBytesMax);
  const std::string what = "tensor \"" + tensor.name + "\"";
  const auto dims = cursor.read<std::uint32_t>("the rank of " + what);
  if (cursor.ok() && (dims < 1 || dims > kDimsMax)) {
    cursor.fail(what + " has " + std::to_string(dims) + " dimensions; 1 to " + std::to_string(kDimsMax) + " are supported");
  }
  std::int64_t elements = 1;
  for (std::uint32_t d = 0; d < dims && cursor.ok(); ++d) {
    const auto extent = cursor.read<std::uint64_t>("the shape of " + what);
    if (!cursor.ok()) break;
    if (extent == 0 || extent > std::numeric_limits<std::int64_t>::max() ||
        __builtin_mul_overflow(elements, static_cast<std::int64_t>(extent), &elements)) {
      cursor.fail("the shape of " + what + " has an impossible extent of " + std::to_string(extent));
      break;
    }
    tensor.shape.push_back(static_cast<std::int64_t>(extent));
  }
  tensor.type = cursor.read<std::uint32_t>("the type of " + what);
  offset = cursor.read<std::uint64_t>("the offset of " + what);
  if (!cursor.ok()) return tensor;

  const auto* type = std::find_if(kTypes.begin(), kTypes.end(), [&](const GgmlType& t) { return t.number == tensor.type; });
  if (type == kTypes.end() || !type->format) {
    const std::string name = type == kTypes.end() ? std::to_string(tensor.type) : std::string(type->name);
    cursor.fail(what + " is of ggml type " + name + "; supported are " + std::string(kSupported));
    return tensor;
  }
  tensor.format = *type->format;
  const std::int64_t block = device::block_weights(tensor.format);
  if (tensor.shape[0] % block != 0) {
    cursor.fail(what + " has rows of " + std::to_string(tensor.shape[0]) + " weights, not a multiple of the block size of " +
                std::string(type->name) + ", " + std::to_string(block));
    return tensor;
  }
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / block, static_cast<std::int64_t>(device::block_bytes(tensor.format)), &bytes)) {
    cursor.fail("the shape of " + what + " is impossibly large");
    return tensor;
  }
  tensor.bytes = static_cast<std::size_t>(bytes);
  std::reverse(tensor.shape.begin(), tensor.shape.end());  // GGUF lists the innermost dimension first
  return tensor;
}

std::string kind_of(const GgufValue& value) {
  constexpr std::array kKinds = {"an integer", "an integer", "a float", "a bool", "a string", "an array"};
  return kKinds[value.index()];
}

// "dir/x-00001-of-00003.gguf" and part 1 -> "dir/x-00002-of-00003.gguf"; "" if the name is not that of the first of `count` parts.
std::string part_path(const std::string& first, std::int64_t part, std::int64_t count) {
  char suffix[64];
  std::snprintf(suffix, sizeof suffix, "-%05lld-of-%05lld.gguf", 1LL, static_cast<long long>(count));
  if (!first.ends_with(suffix)) return {};
  const std::string prefix = first.substr(0, first.size() - std::strlen(suffix));
  std::snprintf(suffix, sizeof suffix, "-%05lld-of-%05lld.gguf", static_cast<long long>(part + 1), static_cast<long long>(count));
  return prefix + suffix;
}

}  // namespace

Status GgufFile::add_part(std::shared_ptr<const MappedFile> file) {
  Cursor cursor(*file);
  read_header(cursor);
  const std::uint64_t tensor_count = cursor.count(32, "tensors");
  const std::uint64_t key_count = cursor.count(13, "metadata keys");

  const bool first = parts_.empty();
  std::uint64_t alignment = 32;
  for (std::uint64_t i = 0; i < key_count && cursor.ok(); ++i) {
    const std::string key = cursor.string("a metadata key", kKeyBytesMax);
    const auto type = cursor.read<std::uint32_t>("the type of key \"" + key + "\"");
    const std::string what = "key \"" + key + "\"";
    GgufValue value = type == kArray ? read_array(cursor, what) : read_scalar(cursor, type, what);
    if (!cursor.ok()) break;
    if (key == "general.alignment") {
      const auto* wanted = std::get_if<std::uint64_t>(&value);
      if (wanted == nullptr || *wanted < 8 || *wanted > (1u << 20) || !std::has_single_bit(*wanted)) {
        cursor.fail(what + " must be a power of two from 8 to 1048576");
        break;
      }
      alignment = *wanted;
    }
    // The metadata of a split set is the first part's; the others repeat some of it.
    if (first && !metadata_.emplace(key, std::move(value)).second) cursor.fail(what + " occurs twice");
  }

  std::vector<std::pair<GgufTensor, std::uint64_t>> found;
  for (std::uint64_t i = 0; i < tensor_count && cursor.ok(); ++i) {
    std::uint64_t offset = 0;
    GgufTensor tensor = read_tensor_info(cursor, offset);
    found.emplace_back(std::move(tensor), offset);
  }
  if (!cursor.ok()) return cursor.status();

  const std::uint64_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
  const std::uint64_t data_bytes = data_begin < file->size() ? file->size() - data_begin : 0;
  for (auto& [tensor, offset] : found) {
    const std::string what = "tensor \"" + tensor.name + "\"";
    if (offset % alignment != 0) cursor.fail(what + " lies at offset " + std::to_string(offset) + ", which is not aligned");
    if (offset > data_bytes || tensor.bytes > data_bytes - offset) {
      cursor.fail("the data of " + what + " (" + std::to_string(tensor.bytes) + " bytes at offset " + std::to_string(offset) +
                  ") ends beyond the file's " + std::to_string(data_bytes) + " bytes of data; the file is damaged or truncated");
    }
    if (!cursor.ok()) return cursor.status();
    tensor.data = file->data() + data_begin + offset;
    std::string name = tensor.name;
    if (!tensors_.emplace(std::move(name), std::move(tensor)).second) cursor.fail(what + " occurs twice");
  }
  if (!cursor.ok()) return cursor.status();
  parts_.push_back(std::move(file));
  return {};
}

Result<std::shared_ptr<GgufFile>> GgufFile::open(const std::string& path) {
  std::shared_ptr<GgufFile> gguf(new GgufFile());
  gguf->path_ = path;
  BATON_ASSIGN_OR_RETURN(auto first, MappedFile::open(path));
  BATON_RETURN_IF_ERROR(gguf->add_part(std::move(first)));
  if (gguf->find("split.count") == nullptr) return gguf;

  BATON_ASSIGN_OR_RETURN(const std::int64_t count, gguf->integer("split.count"));
  BATON_ASSIGN_OR_RETURN(const std::int64_t number, gguf->integer("split.no"));
  if (count < 1 || count > 99999) return {Code::kInvalidArgument, path + ": key \"split.count\" is " + std::to_string(count)};
  if (number != 0) {
    return {Code::kInvalidArgument,
            path + ": this is part " + std::to_string(number + 1) + " of " + std::to_string(count) + "; open the first part"};
  }
  for (std::int64_t part = 1; part < count; ++part) {
    const std::string next = part_path(path, part, count);
    if (next.empty()) {
      return {Code::kInvalidArgument,
              path + ": the first of " + std::to_string(count) + " parts; its name must end in -00001-of-NNNNN.gguf"};
    }
    BATON_ASSIGN_OR_RETURN(auto file, MappedFile::open(next));
    BATON_RETURN_IF_ERROR(gguf->add_part(std::move(file)));
  }
  if (gguf->find("split.tensors.count") != nullptr) {
    BATON_ASSIGN_OR_RETURN(const std::int64_t tensors, gguf->integer("split.tensors.count"));
    if (tensors != static_cast<std::int64_t>(gguf->tensors_.size())) {
      return {Code::kInvalidArgument, path + ": key \"split.tensors.count\" says " + std::to_string(tensors) + " tensors, the parts hold " +
                                          std::to_string(gguf->tensors_.size())};
    }
  }
  return gguf;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

const GgufArray* GgufFile::array(std::string_view key) const {
  const GgufValue* value = find(key);
  const auto* array = value == nullptr ? nullptr : std::get_if<std::shared_ptr<GgufArray>>(value);
  return array == nullptr ? nullptr : array->get();
}

const GgufTensor* GgufFile::tensor(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

namespace {

Status missing(const GgufFile& file, std::string_view key) {
  return {Code::kInvalidArgument, file.path() + ": key \"" + std::string(key) + "\" is missing"};
}
Status wrong_type(const GgufFile& file, std::string_view key, const GgufValue& value, std::string_view wanted) {
  return {Code::kInvalidArgument,
          file.path() + ": key \"" + std::string(key) + "\" is " + kind_of(value) + "; " + std::string(wanted) + " is wanted"};
}

}  // namespace

Result<std::string> GgufFile::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return missing(*this, key);
  if (const auto* s = std::get_if<std::string>(value)) return *s;
  return wrong_type(*this, key, *value, "a string");
}

Result<std::int64_t> GgufFile::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return missing(*this, key);
  if (const auto* s = std::get_if<std::int64_t>(value)) return *s;
  if (const auto* u = std::get_if<std::uint64_t>(value); u != nullptr && *u <= std::numeric_limits<std::int64_t>::max()) {
    return static_cast<std::int64_t>(*u);
  }
  return wrong_type(*this, key, *value, "an integer below 2^63");
}

Result<double> GgufFile::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return missing(*this, key);
  if (const auto* d = std::get_if<double>(value)) return *d;
  if (const auto* s = std::get_if<std::int64_t>(value)) return static_cast<double>(*s);
  if (const auto* u = std::get_if<std::uint64_t>(value)) return static_cast<double>(*u);
  return wrong_type(*this, key, *value, "a number");
}

}  // namespace baton::model
