#pragma once
// Cuts a byte stream into lines of bounded length.

#include <cstddef>
#include <string>
#include <string_view>

namespace baton::gateway {

class LineSplitter {
 public:
  explicit LineSplitter(std::size_t line_bytes_max) : line_bytes_max_(line_bytes_max) {}

  // Calls `on_line(std::string_view)` for each line that `data` completes, without its newline; empty lines are skipped. False once a line
  // has grown beyond the bound; the stream is then of no use.
  template <class F>
  [[nodiscard]] bool push(std::string_view data, F on_line) {
    while (true) {
      const std::size_t end = data.find('\n');
      const std::string_view part = data.substr(0, end);
      if (rest_.size() + part.size() > line_bytes_max_) return false;
      if (end == std::string_view::npos) {
        rest_.append(part);
        return true;
      }
      if (rest_.empty()) {
        if (!part.empty()) on_line(part);
      } else {
        rest_.append(part);
        on_line(std::string_view(rest_));
        rest_.clear();
      }
      data.remove_prefix(end + 1);
    }
  }
  // Bytes of a line that has no end yet.
  std::size_t pending() const { return rest_.size(); }

 private:
  const std::size_t line_bytes_max_;
  std::string rest_;
};

}  // namespace baton::gateway
