#pragma once
// The requests of a chaos run: a function of the seed, and between them all that a failover has to keep: greedy and seeded sampling,
// penalties, biases, stop strings, log-probabilities, several choices, chat and completions, prompts that share a beginning.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace baton::app {

struct ChaosRequest {
  std::string path;             // of the endpoint
  nlohmann::ordered_json body;  // a streaming request, complete but for the model and `cache_salt`
};

// About 20 to 300 prompt tokens and 48 to 320 answer tokens each.
std::vector<ChaosRequest> make_requests(std::size_t count, std::uint64_t seed);

}  // namespace baton::app
