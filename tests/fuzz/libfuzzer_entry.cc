// A fuzz target as libFuzzer calls it.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  baton::fuzz::run({reinterpret_cast<const char*>(data), size});
  return 0;
}

// TARGET --write-seeds FOLDER: writes the target's own seeds and ends.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc != 3 || std::string_view((*argv)[1]) != "--write-seeds") return 0;
  int number = 0;
  for (const std::string& seed : baton::fuzz::seeds()) {
    const auto path = std::filesystem::path((*argv)[2]) / ("seed-" + std::to_string(number++));
    if (!std::ofstream(path, std::ios::binary).write(seed.data(), static_cast<std::streamsize>(seed.size()))) {
      std::cerr << path << ": cannot be written\n";
      std::exit(1);
    }
  }
  std::exit(0);
}
