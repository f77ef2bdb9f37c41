#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "app/bench/compare/outputs.h"
#include "app/bench/testing.h"
#include "app/paths.h"

namespace baton::app {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(OutputFiles, AreCheckedBeforeTheRunAndNothingIsLeftBehind) {
  const DataFile file("old");
  const std::string folder = std::filesystem::path(file.path()).parent_path();
  OutputFiles files;
  EXPECT_TRUE(files.check().ok());
  files.json = file.path();
  files.html = folder + "/new.html";
  EXPECT_TRUE(files.check().ok());
  EXPECT_FALSE(std::filesystem::exists(files.html));
  EXPECT_EQ(*read_text_file(file.path()), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  files.html = file.path() + "/below-a-file";
  EXPECT_THAT(files.check().message(), AllOf(HasSubstr("--html"), HasSubstr("Not a directory")));
  files.html = folder;
  EXPECT_THAT(files.check().message(), HasSubstr("is a folder"));
}

TEST(OutputFiles, OneFileForTwoIsRefused) {
  const DataFile file("");
  const std::string folder = std::filesystem::path(file.path()).parent_path();
  OutputFiles files;
  files.json = folder + "/a";
  files.html = folder + "/./sub/../a";
  EXPECT_THAT(files.check().message(), AllOf(HasSubstr("--json and --html are the same file"), HasSubstr("/a; name two")));
  std::filesystem::create_symlink("data", folder + "/link");
  files.html = file.path();
  files.markdown = folder + "/link";
  EXPECT_THAT(files.check().message(), HasSubstr("--markdown and --html are the same file"));
  files.markdown = folder + "/b";
  EXPECT_TRUE(files.check().ok());
}

TEST(OutputFiles, WhatThereIsIsSavedBetweenRunsAndAtLastShownWhereItCannotBe) {
  const DataFile file("");
  const std::string folder = std::filesystem::path(file.path()).parent_path();
  OutputFiles files;
  Comparison c;
  c.model = "m";
  EXPECT_TRUE(files.save_so_far(c).ok());
  files.json = folder + "/a.json";
  files.html = folder + "/a.html";
  ASSERT_TRUE(files.save_so_far(c).ok());
  EXPECT_THAT(*read_text_file(files.json), HasSubstr("\"finished\": false"));
  EXPECT_FALSE(std::filesystem::exists(files.html));
  c.finished = true;
  ASSERT_TRUE(files.save_so_far(c).ok());
  EXPECT_THAT(*read_text_file(files.json), HasSubstr("\"finished\": true"));

  std::filesystem::create_directory(folder + "/in-the-way");
  files.json = folder + "/in-the-way";
  EXPECT_FALSE(files.save_so_far(c).ok());
  testing::internal::CaptureStderr();
  EXPECT_FALSE(files.write(c).ok());
  EXPECT_THAT(testing::internal::GetCapturedStderr(), AllOf(HasSubstr("\"model\": \"m\""), HasSubstr("saved    " + files.html)));
}

TEST(OutputFiles, AFolderNamesThoseThatAreNotNamed) {
  const DataFile file("");
  const std::string folder = std::filesystem::path(file.path()).parent_path();
  OutputFiles files;
  files.json = folder + "/mine.json";
  ASSERT_TRUE(files.add_folder(folder + "/deep/er").ok());
  EXPECT_EQ(files.json, folder + "/mine.json");
  EXPECT_EQ(files.html, folder + "/deep/er/compare.html");
  Comparison c;
  c.model = "m";
  ASSERT_TRUE(files.write(c).ok());
  EXPECT_THAT(*read_text_file(files.json), HasSubstr("\"advice\""));
  EXPECT_THAT(*read_text_file(files.html), HasSubstr("<!doctype html>"));
  EXPECT_THAT(*read_text_file(files.markdown), HasSubstr("# m on"));
  EXPECT_FALSE(OutputFiles().add_folder(file.path() + "/x").ok());
}

}  // namespace
}  // namespace baton::app
