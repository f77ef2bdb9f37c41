#include "app/bench/compare/incarnations.h"

#include <spdlog/fmt/fmt.h>

#include "app/bench/json_field.h"

namespace baton::app {

Incarnations incarnations_of(const std::string& workers_json) {
  Incarnations out;
  const auto list = nlohmann::json::parse(workers_json, nullptr, false);
  if (!list.is_array()) return out;
  for (const auto& worker : list)
    if (const std::string name = text_field(worker, "name"); !name.empty() && worker.contains("incarnation"))
      out[name] = worker["incarnation"].dump();
  return out;
}

std::string not_ready(const std::string& workers_json) {
  const auto list = nlohmann::json::parse(workers_json, nullptr, false);
  if (!list.is_array()) return "";
  for (const auto& worker : list)
    if (const auto ready = worker.is_object() ? worker.find("ready") : worker.end(); ready != worker.end() && *ready == false)
      return text_field(worker, "name");
  return "";
}

std::string change(const Incarnations& before, const Incarnations& after) {
  for (const auto& [name, incarnation] : before) {
    const auto now = after.find(name);
    if (now == after.end()) return fmt::format("worker {} ended", name);
    if (now->second != incarnation) return fmt::format("worker {} ended and was started again", name);
  }
  for (const auto& [name, incarnation] : after)
    if (!before.contains(name)) return fmt::format("worker {} is new", name);
  return "";
}

}  // namespace baton::app
