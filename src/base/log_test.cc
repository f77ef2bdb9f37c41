#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

namespace baton::log {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

class LogTest : public ::testing::Test {
 protected:
  ~LogTest() override { init({}); }
  template <class F>
  static std::string written(const Options& options, F lines) {
    ::testing::internal::CaptureStderr();
    init(options);
    lines();
    spdlog::default_logger()->flush();
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, TextNamesTheRequestBehindTheMessage) {
  const std::string out = written({.level = "info", .process = "p0", .format = Format::kText}, [] {
    info("{} workers", 2);
    info(About{"req-1", ""}, "lost {}", "d0");
    warn(About{"req-2", "4bf92f3577b34da6a3ce929d0e0e4736"}, "again");
  });
  EXPECT_THAT(out, HasSubstr("[p0] 2 workers\n"));
  EXPECT_THAT(out, HasSubstr("[p0] lost d0 [request req-1]\n"));
  EXPECT_THAT(out, HasSubstr("again [request req-2, trace 4bf92f3577b34da6a3ce929d0e0e4736]\n"));
}

TEST_F(LogTest, AJsonLineHasTimeLevelComponentAndTheRequestsIds) {
  const std::string out = written({.level = "debug", .process = "gateway", .format = Format::kJson}, [] {
    debug(About{"req-1", "4bf92f3577b34da6a3ce929d0e0e4736"}, "first token after {} ms", 12);
    error("no request");
  });
  const std::string time = R"(\{"ts":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",)";
  EXPECT_TRUE(std::regex_match(
      out, std::regex(time + R"("level":"debug","component":"gateway","msg":"first token after 12 ms","request_id":"req-1",)" +
                      R"("trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"\}\n)" + time +
                      R"("level":"error","component":"gateway","msg":"no request"\}\n)")))
      << out;
}

TEST_F(LogTest, WhateverAMessageContainsTheLineIsOneLineOfValidJson) {
  const std::string out = written({.level = "info", .process = "p0", .format = Format::kJson}, [] {
    info("quote \" backslash \\ newline \n bell \a half \xe6\xbc whole \xe6\xbc\xa2 surrogate \xed\xa0\x80 end");
    info(About{"id\x1fwith\nfields", ""}, "text");
  });
  EXPECT_THAT(out, HasSubstr(R"(quote \" backslash \\ newline \u000a bell \u0007 half \ufffd\ufffd whole )"
                             "\xe6\xbc\xa2"
                             R"( surrogate \ufffd\ufffd\ufffd end")"));
  EXPECT_THAT(out, HasSubstr(R"("msg":"text","request_id":"id?with?fields"})"));
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 2);
}

TEST_F(LogTest, LinesBelowTheLevelAreNotWritten) {
  const std::string out = written({.level = "info", .process = "p0", .format = Format::kText}, [] {
    debug(About{"req-1", ""}, "quiet");
    info(About{"req-1", ""}, "loud");
  });
  EXPECT_THAT(out, Not(HasSubstr("quiet")));
  EXPECT_THAT(out, EndsWith("loud [request req-1]\n"));
}

}  // namespace
}  // namespace baton::log
