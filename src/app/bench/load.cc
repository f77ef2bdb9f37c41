#include "app/bench/load.h"

#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <deque>
#include <memory>

#include "app/local_http.h"
#include "base/rng.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

double normal(Rng& rng) {
  const double u = 1.0 - rng.uniform(), v = rng.uniform();
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

// Gamma(shape, 1) after Marsaglia and Tsang, "A simple method for generating gamma variables" (2000).
double gamma(Rng& rng, double shape) {
  if (shape < 1) return gamma(rng, shape + 1) * std::pow(1.0 - rng.uniform(), 1 / shape);
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = normal(rng), t = 1 + c * x;
    if (t <= 0) continue;
    const double v = t * t * t, u = 1.0 - rng.uniform();
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

class Load {
 public:
  Load(const std::vector<BenchRequest>& requests, const LoadOptions& options, const std::function<void(std::size_t)>& on_progress)
      : requests_(requests),
        options_(options),
        on_progress_(on_progress),
        client_(net::HttpClient::create(loop_)),
        flights_(requests.size()) {}

  LoadResult run() {
    result_.outcomes.resize(requests_.size());
    const auto arrivals = arrival_times(requests_.size(), options_.request_rate, options_.burstiness, options_.seed);
    start_ = loop_.clock().now();
    for (std::size_t i = 0; i < requests_.size(); ++i)
      loop_.after(Duration(static_cast<std::int64_t>(arrivals[i] * 1e6)), [this, i] { arrive(i); });
    loop_.run();
    return std::move(result_);
  }

 private:
  struct Flight {
    std::unique_ptr<net::HttpCall> call;
    EventSplitter splitter;
    TimePoint sent{}, last{};
    int status = 0;
    bool any = false, done = false;
    std::int64_t chunks = 0;
    std::string error_body;
  };

  void arrive(std::size_t i) {
    if (options_.max_concurrency > 0 && open_ >= options_.max_concurrency) {
      waiting_.push_back(i);
    } else {
      send(i);
    }
  }

  std::string body(const BenchRequest& request) const {
    Json body{{"model", options_.model}, {"stream", true}, {"stream_options", {{"include_usage", true}}}};
    if (options_.endpoint.ends_with("/chat/completions")) {
      body["messages"] = Json::array({{{"role", "user"}, {"content", Json::array({{{"type", "text"}, {"text", request.prompt}}})}}});
      body["max_completion_tokens"] = request.output_tokens;
    } else {
      if (request.ids.empty()) {
        body["prompt"] = request.prompt;
      } else {
        body["prompt"] = request.ids;
      }
      body["max_tokens"] = request.output_tokens;
    }
    if (options_.ignore_eos) body["ignore_eos"] = true;
    body.update(options_.extra_body);
    return body.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  void send(std::size_t i) {
    ++open_;
    Flight& flight = flights_[i];
    net::HttpClientRequest request;
    request.host = options_.host;
    request.port = options_.port;
    request.target = options_.endpoint;
    request.headers.add("Content-Type", "application/json");
    request.headers.add("x-request-id", options_.request_id_prefix + std::to_string(i));
    if (!options_.api_key.empty()) request.headers.add("Authorization", "Bearer " + options_.api_key);
    request.connect_timeout = std::chrono::seconds(60);
    request.idle_timeout = options_.timeout;
    request.body = body(requests_[i]);
    flight.sent = loop_.clock().now();
    result_.outcomes[i].start = to_seconds(flight.sent - start_);
    result_.outcomes[i].input_tokens = requests_[i].input_tokens;
    flight.call = client_->call(std::move(request),
                                {[&flight](int status, const net::Headers&) { flight.status = status; },
                                 [this, i](std::string_view data) { on_data(i, data); }, [this, i](Status status) { on_done(i, status); }});
  }

  void on_data(std::size_t i, std::string_view data) {
    Flight& flight = flights_[i];
    if (flight.status != 200) {
      if (flight.error_body.size() < 4096) flight.error_body.append(data);
      return;
    }
    flight.splitter.push(data, [&](std::string_view event) {
      on_event(i, event);
      return true;
    });
  }

  void on_event(std::size_t i, std::string_view event) {
    Flight& flight = flights_[i];
    RequestOutcome& out = result_.outcomes[i];
    if (event == "[DONE]") {
      flight.done = true;
      return;
    }
    const TimePoint now = loop_.clock().now();
    const Json chunk = Json::parse(event, nullptr, false);
    if (!chunk.is_object() || chunk.contains("error")) {
      out.error = std::string(event.substr(0, 300));
      return;
    }
    if (const auto usage = chunk.find("usage"); usage != chunk.end() && usage->is_object()) {
      out.output_tokens = usage->value("completion_tokens", std::int64_t{0});
      out.input_tokens = usage->value("prompt_tokens", out.input_tokens);
    }
    const auto choices = chunk.find("choices");
    if (choices == chunk.end() || choices->empty()) return;
    if (!flight.any) {
      flight.any = true;
      out.ttft = to_seconds(now - flight.sent);
    } else {
      out.itl.push_back(to_seconds(now - flight.last));
    }
    flight.last = now;
    ++flight.chunks;
    out.latency = to_seconds(now - flight.sent);
    if (!options_.keep_texts) return;
    const Json& choice = (*choices)[0];
    out.text += choice.contains("text") ? choice.value("text", "") : choice.contains("delta") ? choice["delta"].value("content", "") : "";
  }

  void on_done(std::size_t i, const Status& status) {
    Flight& flight = flights_[i];
    RequestOutcome& out = result_.outcomes[i];
    if (!status.ok()) {
      out.error = status.to_string();
    } else if (flight.status != 200) {
      out.error = fmt::format("HTTP {}: {}", flight.status, flight.error_body);
    } else if (out.error.empty() && (!flight.any || !flight.done)) {
      out.error = "the stream ended early";
    }
    out.ok = out.error.empty();
    if (out.output_tokens == 0) out.output_tokens = flight.chunks;  // a server without the usage chunk
    --open_;
    ++completed_;
    result_.duration = to_seconds(loop_.clock().now() - start_);
    on_progress_(completed_);
    if (!waiting_.empty()) {
      const std::size_t next = waiting_.front();
      waiting_.pop_front();
      send(next);
    }
    if (completed_ == requests_.size()) loop_.stop();
  }

  const std::vector<BenchRequest>& requests_;
  const LoadOptions& options_;
  const std::function<void(std::size_t)>& on_progress_;
  net::EventLoop loop_;
  std::unique_ptr<net::HttpClient> client_;
  TimePoint start_{};
  std::vector<Flight> flights_;
  std::deque<std::size_t> waiting_;
  std::int64_t open_ = 0;
  std::size_t completed_ = 0;
  LoadResult result_;
};

}  // namespace

std::vector<double> arrival_times(std::size_t n, double rate, double burstiness, std::uint64_t seed) {
  std::vector<double> times(n, 0.0);
  if (rate <= 0 || n == 0) return times;
  Rng rng(seed, 4);
  double sum = 0;
  for (double& t : times) t = sum += std::isinf(burstiness) ? 1.0 : gamma(rng, burstiness);
  const double scale = static_cast<double>(n) / rate / sum;
  for (double& t : times) t *= scale;
  return times;
}

LoadResult run_load(const std::vector<BenchRequest>& requests, const LoadOptions& options,
                    const std::function<void(std::size_t)>& on_progress) {
  return Load(requests, options, on_progress).run();
}

}  // namespace baton::app
