#include "app/bench/load.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <csignal>
#include <deque>
#include <memory>

#include "app/bench/json_field.h"
#include "app/client_flags.h"
#include "app/local_http.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

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
    if (options_.stop_on_signals) loop_.on_signals({SIGINT, SIGTERM}, [this](int) { interrupt(); });
    const std::vector<double> times = planned_times(requests_, options_);
    start_ = loop_.clock().now();
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const Duration at(static_cast<std::int64_t>(times[i] * 1e6));
      flights_[i].due = start_ + at;
      loop_.after(at, [this, i] { arrive(i); });
    }
    loop_.run();
    if (result_.interrupted) keep_ended();
    return std::move(result_);
  }

 private:
  struct Flight {
    std::unique_ptr<net::HttpCall> call;
    EventSplitter splitter;
    TimePoint due{}, sent{}, last{};
    int status = 0;
    bool any = false, done = false, ended = false;
    std::int64_t chunks = 0;
    std::string error_body;
  };

  void interrupt() {
    result_.interrupted = true;
    result_.duration = to_seconds(loop_.clock().now() - start_);
    for (Flight& flight : flights_) flight.call.reset();
    loop_.stop();
  }

  void keep_ended() {
    std::vector<RequestOutcome> ended;
    for (std::size_t i = 0; i < flights_.size(); ++i)
      if (flights_[i].ended) ended.push_back(std::move(result_.outcomes[i]));
    result_.outcomes = std::move(ended);
  }

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
    request.headers.add("x-request-id", options_.request_id_prefix + std::to_string(i));
    for (const auto& [name, value] : options_.headers)
      if (request.headers.get(name).empty()) request.headers.add(name, value);
    if (request.headers.get("Content-Type").empty()) request.headers.add("Content-Type", "application/json");
    if (!options_.api_key.empty() && request.headers.get("Authorization").empty())
      request.headers.add("Authorization", "Bearer " + options_.api_key);
    request.connect_timeout = std::chrono::seconds(60);
    request.idle_timeout = options_.timeout;
    request.body = body(requests_[i]);
    flight.sent = loop_.clock().now();
    result_.outcomes[i].start = to_seconds(flight.sent - start_);
    result_.outcomes[i].queued = to_seconds(std::max(Duration(0), flight.sent - flight.due));
    result_.outcomes[i].input_tokens = requests_[i].input_tokens;
    result_.outcomes[i].kind = requests_[i].kind;
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
      out.error = server_message(event);
      return;
    }
    if (const auto usage = chunk.find("usage"); usage != chunk.end() && usage->is_object()) {
      out.output_tokens = integer_field(*usage, "completion_tokens").value_or(0);
      out.input_tokens = integer_field(*usage, "prompt_tokens").value_or(out.input_tokens);
    }
    const auto choices = chunk.find("choices");
    if (choices == chunk.end() || !choices->is_array() || choices->empty()) return;
    if (!flight.any) {
      flight.any = true;
      out.ttft = to_seconds(now - flight.sent);
    } else {
      out.itl.push_back(to_seconds(now - flight.last));
    }
    flight.last = now;
    ++flight.chunks;
    out.latency = to_seconds(now - flight.sent);
    if (options_.keep_texts) out.text += text_field((*choices)[0], "text") + delta_text(chunk).value_or("");
  }

  void on_done(std::size_t i, const Status& status) {
    Flight& flight = flights_[i];
    RequestOutcome& out = result_.outcomes[i];
    if (!status.ok()) {
      out.error = status.to_string();
    } else if (flight.status != 200) {
      out.error = fmt::format("HTTP {}: {}", flight.status, server_message(flight.error_body));
    } else if (out.error.empty() && (!flight.any || !flight.done)) {
      out.error = "the stream ended early";
    }
    out.ok = out.error.empty();
    if (out.output_tokens == 0) out.output_tokens = flight.chunks;  // a server without the usage chunk
    flight.ended = true;
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

std::vector<double> planned_times(const std::vector<BenchRequest>& requests, const LoadOptions& options) {
  const std::size_t n = requests.size();
  if (options.ramp_up) return ramp_up_times(n, *options.ramp_up, options.burstiness, options.seed);
  std::vector<double> times = arrival_times(n, options.request_rate, options.burstiness, options.seed, options.arrival);
  if (options.request_rate > 0) return times;
  for (std::size_t i = 0; i < n; ++i) times[i] = std::max(0.0, requests[i].arrival_s);
  return times;
}

LoadResult run_load(const std::vector<BenchRequest>& requests, const LoadOptions& options,
                    const std::function<void(std::size_t)>& on_progress) {
  return Load(requests, options, on_progress).run();
}

}  // namespace baton::app
