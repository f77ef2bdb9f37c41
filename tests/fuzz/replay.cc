// Runs a fuzz target's seeds and kept inputs, and every beginning of each as if its sender had stopped there: TARGET FILE_OR_FOLDER...

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "tests/fuzz/fuzz.h"

namespace {

// Beginnings of larger inputs are run at this many places.
constexpr std::size_t kCutsMax = 512;

void replay(const std::string& name, const std::string& input) {
  std::cerr << name << '\n';  // the last line before a crash names the input
  baton::fuzz::run(input);
  const std::size_t step = std::max<std::size_t>(1, input.size() / kCutsMax);
  for (std::size_t n = 0; n < input.size(); n += step) baton::fuzz::run(std::string_view(input).substr(0, n));
}

void replay_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    std::cerr << path << ": cannot be read\n";
    std::exit(1);
  }
  replay(path.string(), {std::istreambuf_iterator<char>(in), {}});
}

}  // namespace

int main(int argc, char** argv) {
  int number = 0;
  for (const std::string& seed : baton::fuzz::seeds()) replay("seed " + std::to_string(number++), seed);
  for (int i = 1; i < argc; ++i) {
    if (!std::filesystem::is_directory(argv[i])) {
      replay_file(argv[i]);
      continue;
    }
    std::vector<std::filesystem::path> files(std::filesystem::directory_iterator(argv[i]), {});
    std::sort(files.begin(), files.end());
    for (const auto& file : files) replay_file(file);
  }
  return 0;
}
