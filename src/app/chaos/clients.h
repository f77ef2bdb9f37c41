#pragma once
// The clients of a chaos run: each request sent once as a stream, all that comes back kept with its times.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "app/chaos/requests.h"
#include "app/chaos/stream_record.h"
#include "net/event_loop.h"
#include "net/http.h"

namespace baton::app {

struct StreamOutcome {
  std::string id;  // the request's
  StreamRecord record;
  TimePoint sent{}, ended{};
  std::vector<TimePoint> token_times;  // of each event that brought tokens
  std::string failure;                 // why it did not come to its end; "" of one that did
  int refused = 0;                     // times that the gateway had no room and it was sent again
  int cut = 0;                         // times that it went down with the gateway and was sent again
  std::string served;                  // what /debug/requests says of it, where asked for
};

struct ClientsOptions {
  int port = 0;  // of the gateway, on this host
  std::string model, cache_salt, id_prefix;
  std::size_t concurrency = 0;     // open at once; 0: by arrivals
  std::vector<Duration> arrivals;  // since start, one a request, where concurrency is 0
  bool ask_served = false;
  // Whether an answer that began at this time may end early and is asked for again.
  std::function<bool(TimePoint sent)> excused = [](TimePoint) { return false; };
};

class Clients {
 public:
  // `requests` outlive it. `on_ended(i)` after each stream.
  Clients(net::EventLoop& loop, const std::vector<ChaosRequest>& requests, ClientsOptions options,
          std::function<void(std::size_t)> on_ended);
  ~Clients();

  void start();
  bool finished() const { return ended_ == requests_.size(); }
  std::size_t ended() const { return ended_; }
  TimePoint started() const { return started_; }
  TimePoint last_sent() const { return last_sent_; }
  const std::vector<StreamOutcome>& outcomes() const { return outcomes_; }

 private:
  struct Flight;
  void send(std::size_t i);
  void on_data(std::size_t i, std::string_view data);
  void on_done(std::size_t i, const Status& status);
  bool send_again(std::size_t i);
  void end(std::size_t i);
  void ask_served(std::size_t i);

  net::EventLoop& loop_;
  const std::vector<ChaosRequest>& requests_;
  const ClientsOptions options_;
  const std::function<void(std::size_t)> on_ended_;
  std::unique_ptr<net::HttpClient> client_;
  std::vector<StreamOutcome> outcomes_;
  std::vector<std::unique_ptr<Flight>> flights_;
  std::size_t next_ = 0, ended_ = 0;
  TimePoint started_{}, last_sent_{};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace baton::app
