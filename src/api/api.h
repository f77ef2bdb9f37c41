#pragma once
// The HTTP surface: OpenAI's endpoints and the operator's, over any Generator. See reference in docs/api.md for what each route takes and
// gives.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "api/answer.h"
#include "api/metrics.h"
#include "api/request.h"
#include "net/event_loop.h"
#include "net/http.h"
#include "wire/generate.h"
#include "wire/worker_api.h"

namespace baton::api {

struct ApiKey {
  std::string secret;
  std::int32_t tenant = 0;  // GenerateRequest::tenant of who sends it
};

struct ApiOptions {
  std::vector<std::string> served_names;  // the first is the one that replies carry
  std::string root;                       // the model's path, also accepted as its name
  std::string version;
  std::vector<ApiKey> api_keys;  // empty: no authentication
  FrontEnd front;
};

// What the surface shows of the machinery behind the Generator; composed by app.
struct ApiHooks {
  // nullopt: ready. Else why not ("loading", "draining", "no decode worker").
  std::function<std::optional<std::string>()> not_ready;
  std::function<std::vector<wire::WorkerStatus>()> workers;
  std::function<std::optional<std::string>(const std::string& id)> debug_request;  // JSON
  std::function<std::vector<Metrics::Named>()> counters;
  std::function<std::vector<Metrics::NamedHistogram>()> histograms;
  // Calls back with JSON, later; with nullopt, perhaps at once: too many have asked.
  std::function<void(std::function<void(std::optional<std::string>)>)> debug_kv;
};

class Api {
 public:
  Api(net::Executor& loop, wire::Generator& generator, ApiOptions options, ApiHooks hooks);
  ~Api();
  // The HttpServer's handler.
  void handle(net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder);
  // Answers that are not complete yet; a drain waits for zero.
  std::size_t active() const { return in_flight_.size(); }

 private:
  using Responder = std::shared_ptr<net::HttpResponder>;
  void route(const net::HttpRequest& request, const Responder& responder);
  // Whose request it is; nullopt: it needs a key, and has none that is known.
  std::optional<std::int32_t> tenant_of(const net::HttpRequest& request) const;
  std::optional<ApiError> check_model(const Json& body) const;
  void generate(Endpoint endpoint, const net::HttpRequest& request, std::int32_t tenant, const Responder& responder);
  void models(const std::string& one, const Responder& responder);
  void tokenize(const net::HttpRequest& request, const Responder& responder);
  void detokenize(const net::HttpRequest& request, const Responder& responder);
  void ready(const Responder& responder);
  std::string request_id(const net::HttpRequest& request);

  net::Executor& loop_;
  const ApiOptions options_;
  const ApiHooks hooks_;
  Metrics metrics_;
  AnswerContext context_;
  std::set<std::string> in_flight_;
};

}  // namespace baton::api
