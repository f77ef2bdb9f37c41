#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton::text {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<ChatTemplate> make(std::string source, const Clock* clock = nullptr) {
  auto t = ChatTemplate::create({std::move(source), "<s>", "</s>", clock});
  BATON_CHECK_MSG(t.ok(), t.status().to_string());
  return std::move(t).value();
}

std::string render(std::string source, std::string_view messages = "[]", std::string_view tools = "", std::string_view kwargs = "",
                   bool generate = false) {
  auto text = make(std::move(source))->render(messages, tools, kwargs, generate);
  return text.ok() ? *text : "ERROR " + text.status().to_string();
}

TEST(ChatTemplate, RendersTheDefaultTemplate) {
  EXPECT_EQ(render(std::string(default_chat_template()), R"([{"role":"user","content":"hi"}])", "", "", true),
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, KeepsKeyOrderAndWritesJsonAsPythonDoes) {
  EXPECT_EQ(render("{{ tools | tojson }}", "[]", R"([{"z":1,"a":[1.0,1e16,true,null,"<é\"\n"],"m":{}}])"),
            R"([{"z": 1, "a": [1.0, 1e+16, true, null, "<é\"\n"], "m": {}}])");
  EXPECT_EQ(render("{{ tools | tojson(indent=2) }}", "[]", R"([{"a":[1],"b":[]}])"),
            "[\n  {\n    \"a\": [\n      1\n    ],\n    \"b\": []\n  }\n]");
  EXPECT_EQ(render("{{ tools | tojson(ensure_ascii=True) }}", "[]", R"(["é😀"])"), R"(["\u00e9\ud83d\ude00"])");
  EXPECT_EQ(render("{{ tools | tojson(sort_keys=true, separators=(',', ':')) }}", "[]", R"({"b":1,"a":2})"), R"({"a":2,"b":1})");
  EXPECT_EQ(render("{{ ('{\"b\": [1, 2]}' | fromjson).b[1] }}"), "2");
}

TEST(ChatTemplate, PrintsValuesAsPythonDoes) {
  EXPECT_EQ(render("{{ messages }}", R"([{"role":"it's","n":[1,2.5,true,null]}])"), R"([{'role': "it's", 'n': [1, 2.5, True, None]}])");
  EXPECT_EQ(render("{{ 1.0 }} {{ 0.1 }} {{ 1e-5 }} {{ true }} {{ none }} {{ missing }}|"), "1.0 0.1 1e-05 True None |");
}

TEST(ChatTemplate, ToolsAreNoneWhenThereAreNone) {
  EXPECT_EQ(render("{{ tools is none }} {{ tools is defined }} {{ documents is none }}"), "True True True");
}

TEST(ChatTemplate, KwargsAddVariablesButCannotReplaceTheConversation) {
  EXPECT_EQ(render("{{ enable_thinking }} {{ bos_token }}", "[]", "", R"({"enable_thinking":false,"bos_token":"X"})"), "False X");
  EXPECT_THAT(render("", "[]", "", R"({"messages":[]})"), HasSubstr("chat_template_kwargs must not set 'messages'"));
  EXPECT_THAT(render("", "[]", "", "[1]"), HasSubstr("chat_template_kwargs must be a JSON object"));
}

TEST(ChatTemplate, BlocksAreTrimmedLoopsBreakAndPythonMethodsExist) {
  EXPECT_EQ(render("  {% if true %}\nx\n  {% endif %}\ny"), "x\ny");
  EXPECT_EQ(
      render("{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"),
      "02");
  EXPECT_EQ(render("{{ ' a</think>b'.split('</think>')[-1].strip() }}{{ 'xy'.startswith('x') }}{% for k, v in {'k': 1}.items() %}{{ k }}{{ "
                   "v }}{% endfor %}"),
            "bTruek1");
  EXPECT_EQ(render("{% generation %}a{% endgeneration %}{%- generation -%} b {%- endgeneration -%}"), "ab");
}

TEST(ChatTemplate, RaisedTextReachesTheCallerUnchanged) {
  auto text = make("{{ raise_exception('roles must alternate') }}")->render("[]", "", "", false);
  EXPECT_EQ(text.status().code(), Code::kInvalidArgument);
  EXPECT_EQ(text.status().message(), "roles must alternate");
  text = make("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}")->render("[]", "", "", false);
  EXPECT_EQ(text.status().message(), "deep");
}

TEST(ChatTemplate, OtherFailuresNameLineAndReason) {
  auto parse = ChatTemplate::create({"a\n{% if %}", "", ""});
  EXPECT_EQ(parse.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(parse.status().message(), HasSubstr("line 2"));
  EXPECT_THAT(render("x\n\n{{ messages[0].content.nested }}"), HasSubstr("line 3"));
  EXPECT_THAT(render("{{ 1 }}", "[{"), HasSubstr("messages"));
  EXPECT_THAT(render("{{ 1 }}", "\xFF"), HasSubstr("not valid UTF-8"));
  EXPECT_FALSE(ChatTemplate::create({"\xFF", "", ""}).ok());
  EXPECT_THAT(render("{{ 1 }}", std::string(100'000, '[')), HasSubstr("messages"));  // no stack overflow
}

TEST(ChatTemplate, AnEndlessTemplateIsStopped) {
  EXPECT_THAT(render("{% for a in range(100000) %}{% for b in range(100000) %}{% set x = a * b %}{% endfor %}{% endfor %}"),
              HasSubstr("ERROR"));
}

TEST(ChatTemplate, StrftimeNowReadsTheGivenClock) {
  ManualClock clock;
  clock.set(TimePoint(std::chrono::seconds(1'700'000'000)));  // 14 or 15 November 2023, wherever this runs
  auto text = make("{{ strftime_now('%B %Y') }}|{{ strftime_now('') }}", &clock)->render("[]", "", "", false);
  ASSERT_TRUE(text.ok()) << text.status().to_string();
  EXPECT_EQ(*text, "November 2023|");
}

}  // namespace
}  // namespace baton::text
