#pragma once
// Downloads files in parallel over HTTP(S) by libcurl: resumed where they stopped, verified, moved into place whole.

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace baton::app {

struct DownloadFile {
  std::string url;
  std::string path;         // where it ends up; "<path>.part" while incomplete
  std::int64_t bytes = -1;  // -1: not known before
  std::string sha256;       // "" if the source gives none
};

struct DownloadOptions {
  std::string bearer_token;  // sent to the first host only, not to where it redirects
  int parallel = 4;
  int retries = 3;
};

// Shows a progress bar on stderr. What is complete stays; an error names the file, and the next call goes on from there.
Status download(const std::vector<DownloadFile>& files, const DownloadOptions& options);

// A whole small answer. kUnauthenticated for 401 and 403, kNotFound for 404.
Result<std::string> fetch_text(const std::string& url, const DownloadOptions& options);

// Hex SHA-256 of a file.
Result<std::string> sha256_of_file(const std::string& path);

// "model.safetensors  [######----]  61 %  60.1 / 98.0 MiB  21.3 MiB/s"; redrawn on a terminal, a line every tenth elsewhere.
class ProgressBar {
 public:
  ProgressBar(std::string label, std::int64_t total);
  void update(std::int64_t done);
  void finish();

 private:
  void draw(std::int64_t done, bool last);
  const std::string label_;
  const std::int64_t total_;
  const bool terminal_;
  std::int64_t started_us_, drawn_us_ = 0, start_bytes_ = -1, done_ = 0;
  int tenth_ = -1;
};

}  // namespace baton::app
