#pragma once
// Which process each worker of a server is: one that crashed and was started again is another one, though the server went on. Pure.

#include <map>
#include <string>

namespace baton::app {

using Incarnations = std::map<std::string, std::string>;  // by worker

// Of the answer to GET /debug/workers.
Incarnations incarnations_of(const std::string& workers_json);
// The first worker that is not ready, as one that has crashed is not until it is back; "": all are.
std::string not_ready(const std::string& workers_json);
// What happened to workers in between: "worker decode-0 ended and was started again"; "" if nothing did.
std::string change(const Incarnations& before, const Incarnations& after);

}  // namespace baton::app
