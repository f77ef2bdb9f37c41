#include "app/chaos/clients.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "app/local_http.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr Duration kIdle = std::chrono::seconds(60);  // a stream that says nothing for this long is lost
constexpr int kTries = 20;                            // of a request that is refused or cut with the gateway
constexpr Duration kAgain = std::chrono::milliseconds(300);

}  // namespace

struct Clients::Flight {
  std::unique_ptr<net::HttpCall> call;
  EventSplitter splitter;
  int status = 0;
  Duration retry_after{};
  std::string body;  // of an answer that is none
};

Clients::Clients(net::EventLoop& loop, const std::vector<ChaosRequest>& requests, ClientsOptions options,
                 std::function<void(std::size_t)> on_ended)
    : loop_(loop),
      requests_(requests),
      options_(std::move(options)),
      on_ended_(std::move(on_ended)),
      client_(net::HttpClient::create(loop)),
      outcomes_(requests.size()),
      flights_(requests.size()) {}

Clients::~Clients() { *alive_ = false; }

void Clients::start() {
  started_ = loop_.clock().now();
  if (options_.concurrency > 0) {
    while (next_ < std::min(options_.concurrency, requests_.size())) send(next_++);
    return;
  }
  for (std::size_t i = 0; i < requests_.size(); ++i)
    loop_.after(options_.arrivals[i], [this, i, alive = alive_] {
      if (*alive) send(i);
    });
}

void Clients::send(std::size_t i) {
  StreamOutcome& out = outcomes_[i];
  out.id = fmt::format("{}{}", options_.id_prefix, i);
  if (const int before = out.refused + out.cut; before > 0) out.id += fmt::format(".{}", before);
  out.record = {};
  out.token_times.clear();
  out.failure.clear();
  out.sent = last_sent_ = loop_.clock().now();
  flights_[i] = std::make_unique<Flight>();
  Flight& flight = *flights_[i];

  Json body = requests_[i].body;
  body["model"] = options_.model;
  body["cache_salt"] = options_.cache_salt;
  net::HttpClientRequest request;
  request.host = "127.0.0.1";
  request.port = options_.port;
  request.target = requests_[i].path;
  request.headers.add("Content-Type", "application/json");
  request.headers.add("x-request-id", out.id);
  request.idle_timeout = kIdle;
  request.body = body.dump();
  flight.call = client_->call(std::move(request), {[&flight](int status, const net::Headers& headers) {
                                                     flight.status = status;
                                                     const std::string wait(headers.get("retry-after"));
                                                     flight.retry_after = std::chrono::seconds(std::min(std::atoi(wait.c_str()), 5));
                                                   },
                                                   [this, i](std::string_view data) { on_data(i, data); },
                                                   [this, i](const Status& status) { on_done(i, status); }});
}

void Clients::on_data(std::size_t i, std::string_view data) {
  Flight& flight = *flights_[i];
  StreamOutcome& out = outcomes_[i];
  if (flight.status != 200) {
    if (flight.body.size() < 2000) flight.body.append(data);
    return;
  }
  flight.splitter.push(data, [&](std::string_view event) {
    if (out.record.on_event(event)) out.token_times.push_back(loop_.clock().now());
    return true;
  });
}

void Clients::on_done(std::size_t i, const Status& status) {
  const Flight& flight = *flights_[i];
  StreamOutcome& out = outcomes_[i];
  if (!status.ok()) {
    out.failure = status.to_string();
  } else if (flight.status != 200) {
    out.failure = fmt::format("HTTP {}: {}", flight.status, flight.body);
  } else if (!out.record.error().empty()) {
    out.failure = out.record.error();
  } else if (!out.record.done()) {
    out.failure = "the stream ended without [DONE]";
  }
  if (!out.failure.empty() && send_again(i)) return;
  if (options_.ask_served) return ask_served(i);
  end(i);
}

bool Clients::send_again(std::size_t i) {
  const Flight& flight = *flights_[i];
  StreamOutcome& out = outcomes_[i];
  if (out.refused + out.cut == kTries) return false;
  Duration wait = kAgain;
  if (options_.excused(out.sent)) {
    ++out.cut;
  } else if (flight.status == 429 || flight.status == 503) {
    ++out.refused;
    wait = std::max(wait, flight.retry_after);
  } else {
    return false;
  }
  loop_.after(wait, [this, i, alive = alive_] {
    if (*alive) send(i);
  });
  return true;
}

void Clients::ask_served(std::size_t i) {
  outcomes_[i].ended = loop_.clock().now();
  net::HttpClientRequest request;
  request.method = "GET";
  request.host = "127.0.0.1";
  request.port = options_.port;
  request.target = "/debug/requests/" + outcomes_[i].id;
  request.idle_timeout = std::chrono::seconds(5);
  const auto ends = std::exchange(flights_[i], std::make_unique<Flight>());
  Flight& flight = *flights_[i];
  flight.call = client_->call(std::move(request), {[&flight](int status, const net::Headers&) { flight.status = status; },
                                                   [&flight](std::string_view data) { flight.body += data; },
                                                   [this, i](const Status& status) {
                                                     if (status.ok() && flights_[i]->status == 200) outcomes_[i].served = flights_[i]->body;
                                                     end(i);
                                                   }});
}

void Clients::end(std::size_t i) {
  if (outcomes_[i].ended == TimePoint{}) outcomes_[i].ended = loop_.clock().now();
  const auto ends = std::move(flights_[i]);
  ++ended_;
  if (options_.concurrency > 0 && next_ < requests_.size()) send(next_++);
  on_ended_(i);
}

}  // namespace baton::app
