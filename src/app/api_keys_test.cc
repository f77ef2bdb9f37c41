#include "app/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

namespace baton::app {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

ApiKeys empty() {
  ApiKeys keys;
  keys.tenants.push_back({.name = "none"});
  return keys;
}

TEST(ApiKeys, AFileOfKeys) {
  ApiKeys keys = empty();
  const Status status = add_key_file("keys.jsonl",
                                     "# who\n\n"
                                     R"({"key":"sk-1","name":"alice"})"
                                     "\r\n  "
                                     R"({"key":"sk-2","name":"bob.2","weight":4,"max_requests":8,"max_tokens_per_minute":60000})",
                                     keys);
  ASSERT_TRUE(status.ok()) << status.to_string();
  ASSERT_EQ(keys.keys.size(), 2u);
  EXPECT_EQ(keys.keys[1].secret, "sk-2");
  EXPECT_EQ(keys.keys[1].tenant, 2);
  const gateway::Tenant &alice = keys.tenants[1], &bob = keys.tenants[2];
  EXPECT_EQ(alice.name, "alice");
  EXPECT_EQ(alice.weight, 1);
  EXPECT_EQ(alice.requests_max, 0);
  EXPECT_EQ(alice.tokens_per_minute, 0);
  EXPECT_EQ(bob.name, "bob.2");
  EXPECT_EQ(bob.weight, 4);
  EXPECT_EQ(bob.requests_max, 8);
  EXPECT_EQ(bob.tokens_per_minute, 60000);
}

TEST(ApiKeys, ErrorsNameFileLineAndReasonAndShowNoKey) {
  const std::string good = R"({"key":"sk-secret","name":"alice"})";
  const std::pair<std::string, std::string> cases[] = {
      {R"({"key":"sk-secret2,"name":"x"})", "not valid JSON at column"},
      {R"(sk-secret2)", "not valid JSON at column 1"},
      {R"(["sk-secret2"])", "expected a JSON object"},
      {R"({"name":"x"})", "`key` is missing"},
      {R"({"key":"sk-secret2"})", "`name` is missing"},
      {R"({"key":7,"name":"x"})", "`key` must be a string"},
      {R"({"key":"","name":"x"})", "`key` must be 1 to 256"},
      {R"({"key":"sk-secret2 ","name":"x"})", "`key` must be 1 to 256"},
      {R"({"key":"sk-secret2","name":"a b"})", "`name` must be 1 to 64"},
      {R"({"key":"sk-secret2","name":"alice"})", "the name alice was given before"},
      {R"({"key":"sk-secret","name":"x"})", "its key was given before"},
      {R"({"key":"sk-secret2","name":"x","sk-secret3":1})", "an unknown field; known are key, name, weight"},
      {R"({"key":"sk-secret2","name":"x","weight":0})", "`weight` must be a whole number from 1 to 1000"},
      {R"({"key":"sk-secret2","name":"x","weight":1.5})", "`weight` must be"},
      {R"({"key":"sk-secret2","name":"x","weight":-1})", "`weight` must be"},
      {R"({"key":"sk-secret2","name":"x","max_requests":"8"})", "`max_requests` must be"},
      {R"({"key":"sk-secret2","name":"x","max_tokens_per_minute":99999999999999999999})", "`max_tokens_per_minute` must be"},
  };
  for (const auto& [line, why] : cases) {
    ApiKeys keys = empty();
    const Status status = add_key_file("keys.jsonl", good + "\n# more\n" + line + "\n", keys);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << line;
    EXPECT_THAT(status.message(), HasSubstr("keys.jsonl:3: ")) << line;
    EXPECT_THAT(status.message(), HasSubstr(why)) << line;
    EXPECT_THAT(status.message(), Not(HasSubstr("sk-"))) << line;
  }
}

TEST(ApiKeys, ThereMayBeSoMany) {
  ApiKeys keys = empty();
  std::string text;
  for (int i = 0; i < 1025; ++i) text += R"({"key":"k)" + std::to_string(i) + R"(","name":"n)" + std::to_string(i) + "\"}\n";
  EXPECT_THAT(add_key_file("f", text, keys).message(), HasSubstr("f:1025: there are more than 1024 keys"));
}

class KeyFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "baton-test-XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::string write(const std::string& text) {
    std::ofstream(dir_ + "/keys") << text;
    return dir_ + "/keys";
  }
  std::string dir_;
};

TEST_F(KeyFile, GivenKeysAreNumberedAndJoinedByTheFiles) {
  const auto keys = load_api_keys({"a", "b", "a"}, write(R"({"key":"c","name":"carol"})"));
  ASSERT_TRUE(keys.ok()) << keys.status().to_string();
  ASSERT_EQ(keys->tenants.size(), 4u);
  EXPECT_EQ(keys->tenants[0].name, "none");
  EXPECT_EQ(keys->tenants[1].name, "key-1");
  EXPECT_EQ(keys->tenants[2].name, "key-2");
  EXPECT_EQ(keys->tenants[3].name, "carol");
  EXPECT_EQ(keys->keys[2].tenant, 3);
  EXPECT_TRUE(load_api_keys({}, "")->keys.empty());
}

TEST_F(KeyFile, AFileThatIsNotThereOrHasNoKeyLetsNobodyIn) {
  EXPECT_EQ(load_api_keys({"a"}, dir_ + "/none").status().code(), Code::kNotFound);
  EXPECT_THAT(load_api_keys({"a"}, write("# nothing yet\n")).status().message(), HasSubstr("there is no key in it"));
}

TEST_F(KeyFile, WhoMayReadIt) {
  const std::string path = write("");
  ASSERT_EQ(chmod(path.c_str(), 0600), 0);
  EXPECT_FALSE(readable_by_others(path));
  ASSERT_EQ(chmod(path.c_str(), 0640), 0);
  EXPECT_TRUE(readable_by_others(path));
  EXPECT_FALSE(readable_by_others(""));
}

}  // namespace
}  // namespace baton::app
