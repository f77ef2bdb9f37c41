#include "app/download.h"

#include <curl/curl.h>
#include <openssl/evp.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <memory>

#include "app/args.h"
#include "app/paths.h"
#include "base/clock.h"

namespace baton::app {
namespace fs = std::filesystem;
namespace {

std::int64_t now_us() { return SystemClock().now().time_since_epoch().count(); }

struct CurlFree {
  void operator()(CURL* c) const { curl_easy_cleanup(c); }
};
using Curl = std::unique_ptr<CURL, CurlFree>;

Status http_error(const std::string& url, long code) {
  const Code status = code == 401 || code == 403   ? Code::kUnauthenticated
                      : code == 404                ? Code::kNotFound
                      : code == 429 || code >= 500 ? Code::kUnavailable
                                                   : Code::kInternal;
  const char* advice = status == Code::kUnauthenticated ? "; the model may be gated: set HF_TOKEN to a token that has access"
                       : status == Code::kNotFound      ? "; is the name right, and the revision?"
                                                        : "";
  return Status(status, fmt::format("{}: HTTP {}{}", url, code, advice));
}

void prepare(CURL* curl, const std::string& url, const DownloadOptions& options) {
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(curl, CURLOPT_MAXREDIRS, 10L);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 20L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);  // stalled for a minute: an error
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, 60L);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "baton/" BATON_VERSION);
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  if (!options.bearer_token.empty()) {
    curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
    curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, options.bearer_token.c_str());
  }
}

// One file on its way.
struct Transfer {
  const DownloadFile* file = nullptr;
  Curl curl;
  std::FILE* out = nullptr;
  std::int64_t have = 0;  // bytes in the .part file
  bool status_checked = false;
  bool disk_full = false;
  int tries = 0;

  std::string part() const { return file->path + ".part"; }

  // Resumes only if the server does (206); a 200 starts the file again.
  static std::size_t write(char* data, std::size_t, std::size_t size, void* user) {
    auto& t = *static_cast<Transfer*>(user);
    long code = 0;
    curl_easy_getinfo(t.curl.get(), CURLINFO_RESPONSE_CODE, &code);
    if (code >= 300) return size;  // an error's body
    if (!t.status_checked && code == 200 && t.have > 0) {
      if (ftruncate(fileno(t.out), 0) != 0) return 0;
      std::rewind(t.out);
      t.have = 0;
    }
    t.status_checked = true;
    if (std::fwrite(data, 1, size, t.out) != size) {
      t.disk_full = true;
      return 0;
    }
    t.have += static_cast<std::int64_t>(size);
    return size;
  }

  Status start(const DownloadOptions& options) {
    BATON_RETURN_IF_ERROR(make_dirs(fs::path(file->path).parent_path()));
    std::error_code ignored;
    out = std::fopen(part().c_str(), "ab");
    if (!out) return Status(Code::kInternal, fmt::format("cannot write {}", part()));
    have = static_cast<std::int64_t>(fs::file_size(part(), ignored));
    if (file->bytes >= 0 && have >= file->bytes) {  // whole but not yet verified, or of another size: start again
      if (ftruncate(fileno(out), 0) != 0) return Status(Code::kInternal, fmt::format("cannot write {}", part()));
      have = 0;
    }
    curl.reset(curl_easy_init());
    status_checked = false;
    prepare(curl.get(), file->url, options);
    curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, &Transfer::write);
    curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, this);
    curl_easy_setopt(curl.get(), CURLOPT_PRIVATE, this);
    // Not CURLOPT_RESUME_FROM: with it a server that answers 200 and the whole file is an error.
    if (have > 0) curl_easy_setopt(curl.get(), CURLOPT_RANGE, fmt::format("{}-", have).c_str());
    return {};
  }

  // After the last byte: size, digest, rename.
  Status finish(CURLcode result) {
    const bool flushed = std::fclose(out) == 0;
    out = nullptr;
    long code = 0;
    curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &code);
    if (disk_full || !flushed)
      return Status(Code::kResourceExhausted,
                    fmt::format("cannot write {}: is the disk full? What is there stays; run this again", part()));
    if (result != CURLE_OK) return Status(Code::kUnavailable, fmt::format("{}: {}", file->url, curl_easy_strerror(result)));
    if (code == 416) {  // what is there is not the beginning of this file
      std::error_code ignored;
      fs::remove(part(), ignored);
      return Status(Code::kUnavailable, fmt::format("{}: the partial file did not fit and was removed", file->url));
    }
    if (code >= 300) return http_error(file->url, code);
    if (file->bytes >= 0 && have != file->bytes)
      return Status(Code::kUnavailable, fmt::format("{}: got {} of {} bytes", file->url, have, file->bytes));
    if (!file->sha256.empty()) {
      BATON_ASSIGN_OR_RETURN(const std::string digest, sha256_of_file(part()));
      if (digest != file->sha256) {
        std::error_code ignored;
        fs::remove(part(), ignored);
        return Status(Code::kDataLoss,
                      fmt::format("{}: SHA-256 is {}, expected {}; the file was removed, run this again", file->url, digest, file->sha256));
      }
    }
    std::error_code error;
    fs::rename(part(), file->path, error);
    if (error) return Status(Code::kInternal, fmt::format("cannot move {} into place: {}", part(), error.message()));
    return {};
  }
};

}  // namespace

ProgressBar::ProgressBar(std::string label, std::int64_t total)
    : label_(std::move(label)), total_(total), terminal_(isatty(2)), started_us_(now_us()) {}

void ProgressBar::update(std::int64_t done) {
  if (start_bytes_ < 0) start_bytes_ = done;
  done = done_ = std::max(done_, done);  // what is moved or retried does not take the bar back
  const std::int64_t now = now_us();
  const int tenth = total_ > 0 ? static_cast<int>(done * 10 / total_) : 0;
  if (terminal_ ? now - drawn_us_ < 100'000 : tenth == tenth_) return;
  tenth_ = tenth;
  drawn_us_ = now;
  draw(done, false);
}

void ProgressBar::finish() {
  if (terminal_ || tenth_ != 10) draw(done_, true);
}

void ProgressBar::draw(std::int64_t done, bool last) {
  const double seconds = static_cast<double>(now_us() - started_us_) / 1e6;
  const double speed = seconds > 0 ? static_cast<double>(done - std::max<std::int64_t>(0, start_bytes_)) / seconds : 0;
  const double share = total_ > 0 ? std::min(1.0, static_cast<double>(done) / static_cast<double>(total_)) : 0;
  const int filled = static_cast<int>(share * 24);
  std::fprintf(stderr, "%s%-28s [%s%s] %3.0f %%  %s / %s  %s/s%s", terminal_ ? "\r" : "", label_.c_str(),
               std::string(static_cast<std::size_t>(filled), '#').c_str(), std::string(static_cast<std::size_t>(24 - filled), '-').c_str(),
               share * 100, format_bytes(static_cast<double>(done)).c_str(), format_bytes(static_cast<double>(total_)).c_str(),
               format_bytes(speed).c_str(), terminal_ && !last ? "  " : "\n");
  std::fflush(stderr);
}

Result<std::string> sha256_of_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> in(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!in) return Status(Code::kNotFound, fmt::format("cannot read {}", path));
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr);
  std::vector<char> buffer(1 << 20);
  for (std::size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), in.get())) > 0;) EVP_DigestUpdate(context.get(), buffer.data(), n);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_DigestFinal_ex(context.get(), digest, &length);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

Result<std::string> fetch_text(const std::string& url, const DownloadOptions& options) {
  const Curl curl(curl_easy_init());
  std::string body;
  prepare(curl.get(), url, options);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &body);
  curl_easy_setopt(
      curl.get(), CURLOPT_WRITEFUNCTION, +[](char* data, std::size_t, std::size_t size, void* user) -> std::size_t {
        auto& out = *static_cast<std::string*>(user);
        if (out.size() + size > (64u << 20)) return 0;
        out.append(data, size);
        return size;
      });
  if (const CURLcode result = curl_easy_perform(curl.get()); result != CURLE_OK)
    return Status(Code::kUnavailable, fmt::format("{}: {}", url, curl_easy_strerror(result)));
  long code = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &code);
  if (code != 200) return http_error(url, code);
  return body;
}

Status download(const std::vector<DownloadFile>& files, const DownloadOptions& options) {
  std::deque<Transfer*> waiting;
  std::vector<std::unique_ptr<Transfer>> all;
  std::int64_t total = 0;
  for (const DownloadFile& file : files) {
    total += std::max<std::int64_t>(0, file.bytes);
    std::error_code ignored;
    all.push_back(std::make_unique<Transfer>());
    all.back()->file = &file;
    if (fs::exists(file.path, ignored) && (file.bytes < 0 || static_cast<std::int64_t>(fs::file_size(file.path, ignored)) == file.bytes)) {
      all.back()->have = std::max<std::int64_t>(0, file.bytes);
    } else {
      waiting.push_back(all.back().get());
    }
  }
  if (waiting.empty()) return {};
  const std::unique_ptr<CURLM, CURLMcode (*)(CURLM*)> multi(curl_multi_init(), &curl_multi_cleanup);
  ProgressBar bar(fmt::format("{} files", files.size()), total);
  int running = 0;
  Status first_error;
  while (running > 0 || (!waiting.empty() && first_error.ok())) {
    while (running < options.parallel && !waiting.empty() && first_error.ok()) {
      Transfer* t = waiting.front();
      waiting.pop_front();
      ++t->tries;
      if (first_error = t->start(options); !first_error.ok()) break;
      curl_multi_add_handle(multi.get(), t->curl.get());
      ++running;
    }
    int still = 0;
    curl_multi_perform(multi.get(), &still);
    curl_multi_poll(multi.get(), nullptr, 0, 100, nullptr);
    std::int64_t done = 0;
    for (const auto& t : all) done += t->have;
    bar.update(done);
    int left = 0;
    while (const CURLMsg* message = curl_multi_info_read(multi.get(), &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      Transfer* t = nullptr;
      curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &t);
      const CURLcode result = message->data.result;
      curl_multi_remove_handle(multi.get(), message->easy_handle);
      --running;
      const Status finished = t->finish(result);
      if (finished.ok()) continue;
      if (finished.code() == Code::kUnavailable && t->tries <= options.retries) {
        waiting.push_back(t);
      } else if (first_error.ok()) {
        first_error = finished;
      }
    }
  }
  bar.finish();
  for (const auto& t : all)
    if (t->out) std::fclose(t->out);
  return first_error;
}

}  // namespace baton::app
