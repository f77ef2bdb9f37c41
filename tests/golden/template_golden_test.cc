// Chat templates rendered as transformers' apply_chat_template renders them, and failing where it fails.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/golden/golden.h"
#include "text/chat_template.h"

namespace baton {
namespace {

using nlohmann::json;
using text::ChatTemplate;

void check(const std::string& source, const std::string& name, const json& golden) {
  ManualClock clock;
  clock.set(TimePoint(std::chrono::seconds(golden["now_unix_s"].get<std::int64_t>())));
  auto chat_template = ChatTemplate::create({source, "<bos>", "<eos>", &clock});
  ASSERT_TRUE(chat_template.ok()) << chat_template.status().to_string();
  const json& cases = golden["templates"][name];
  ASSERT_GT(cases.size(), 40u);
  for (const json& c : cases) {
    SCOPED_TRACE(c["name"].get<std::string>() + (c["tools"].get<bool>() ? " with tools" : "") + " " + c["kwargs"].get<std::string>());
    auto text = (*chat_template)
                    ->render(golden["conversations"][c["name"].get<std::string>()].get<std::string>(),
                             c["tools"].get<bool>() ? golden["tools"].get<std::string>() : std::string(), c["kwargs"].get<std::string>(),
                             c["add_generation_prompt"].get<bool>());
    if (c.contains("text")) {
      ASSERT_TRUE(text.ok()) << text.status().to_string();
      EXPECT_EQ(*text, c["text"].get<std::string>());
    } else if (text.ok()) {
      ADD_FAILURE() << "should fail, but renders:\n" << *text;
    } else {
      EXPECT_EQ(text.status().code(), Code::kInvalidArgument);
      // "" where the reason is worded by Jinja2 and not by the template
      const auto reason = c["fails"].get<std::string>();
      if (!reason.empty()) {
        EXPECT_EQ(text.status().message(), reason);
      }
    }
  }
}

class TemplateGolden : public ::testing::TestWithParam<const char*> {
  // strftime_now shows local time
  void SetUp() override {
    setenv("TZ", "UTC", 1);
    tzset();
  }
};

TEST_P(TemplateGolden, Renders) {
  const std::string name = GetParam();
  check(golden::read("templates/" + name + ".jinja"), name, golden::read_json("text_templates.json"));
}

INSTANTIATE_TEST_SUITE_P(Templates, TemplateGolden,
                         ::testing::Values("features", "llama3_like", "mistral_like", "qwen25_like", "qwen3_like", "r1_like"),
                         [](const auto& info) { return std::string(info.param); });

TEST(TemplateGoldenOfTheDefaultModel, Renders) {
  auto file = golden::default_model();
  BATON_SKIP_WITHOUT_MODEL(file);
  auto source = file->string("tokenizer.chat_template");
  ASSERT_TRUE(source.ok()) << source.status().to_string();
  check(*source, "smollm2", golden::read_json("text_template_smollm2.json"));
}

}  // namespace
}  // namespace baton
