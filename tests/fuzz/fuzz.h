#pragma once
// What a fuzz target defines. libfuzzer_entry.cc runs it under libFuzzer (preset `fuzz`), replay.cc runs what is known in every other
// build.

#include <string>
#include <string_view>
#include <vector>

namespace baton::fuzz {

// Runs one input. Whatever the bytes are, it returns; a property that does not hold is a BATON_CHECK.
void run(std::string_view input);

// Inputs to start from. They are made by the production codecs where there are any, so that none is ever stale; tests/fuzz/corpus/ has
// what no code makes.
std::vector<std::string> seeds();

// FNV-1a: a choice that depends on every byte of an input, where the input itself has no room for one.
inline std::uint64_t hash(std::string_view bytes) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

}  // namespace baton::fuzz
