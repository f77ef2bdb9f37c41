#include "gateway/kv_snapshot.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "wire/kv_report.h"

namespace baton::gateway {
namespace {

constexpr std::size_t kBodyMax = 1u << 20;

}  // namespace

KvSnapshot::KvSnapshot(net::Executor& executor, net::HttpClient& client, const std::vector<Worker>& workers, Duration timeout, Done done)
    : executor_(executor), done_(std::move(done)), answers_(workers.size()), awaited_(workers.size()) {
  for (std::size_t i = 0; i < workers.size(); ++i) {
    Answer& answer = answers_[i];
    answer.name = workers[i].name();
    answer.role = wire::to_string(workers[i].config.role);
    answer.liveness = to_string(workers[i].liveness);
    net::HttpClientRequest request;
    request.method = "GET";
    request.host = workers[i].config.host;
    request.port = workers[i].config.port;
    request.target = "/internal/kv";
    request.connect_timeout = request.idle_timeout = 2 * timeout;  // ours, over all of it, comes first
    answer.call =
        client.call(std::move(request), {.on_headers = [this, i](int status, const net::Headers&) { answers_[i].http_status = status; },
                                         .on_data =
                                             [this, i](std::string_view data) {
                                               std::string& body = answers_[i].body;
                                               if (body.size() + data.size() <= kBodyMax) body.append(data);
                                             },
                                         .on_done = [this, i](const Status& status) { on_done(i, status); }});
  }
  timer_ = executor_.after(workers.empty() ? Duration(0) : timeout, [this, timeout] {
    timer_ = 0;
    for (Answer& answer : answers_)
      if (answer.call) answer.error = "no answer within " + std::to_string(timeout.count() / 1000) + " ms", answer.call.reset();
    finish();
  });
}

KvSnapshot::~KvSnapshot() {
  if (timer_ != 0) executor_.cancel(timer_);
}

void KvSnapshot::on_done(std::size_t index, const Status& status) {
  Answer& answer = answers_[index];
  answer.call.reset();
  if (!status.ok()) {
    answer.error = status.message();
  } else if (answer.http_status != 200) {
    answer.error = "it answers " + std::to_string(answer.http_status);
  } else if (const auto report = wire::kv_report_from_json(answer.body); !report.ok()) {
    answer.error = report.status().message();
  } else {
    answer.body = wire::to_json(*report);
  }
  if (--awaited_ == 0) finish();
}

void KvSnapshot::finish() {
  const Done done = done_;
  done(json());  // `this` may be gone
}

std::string KvSnapshot::json() const {
  using Json = nlohmann::ordered_json;
  Json workers = Json::array();
  bool balanced = true;
  for (const Answer& answer : answers_) {
    Json worker = answer.error.empty() ? Json::parse(answer.body) : Json{{"error", answer.error}};
    balanced &= worker.value("balanced", true);
    worker["name"] = answer.name;  // ours: one that does not answer has one too
    worker["role"] = answer.role;
    worker["liveness"] = answer.liveness;
    workers.push_back(std::move(worker));
  }
  return Json{{"balanced", balanced}, {"workers", std::move(workers)}}.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace baton::gateway
