# cmake -DSOURCE_DIR=... -DOUT=... -P commit.cmake: writes which commit is built; leaves the file alone where it says that already.
execute_process(COMMAND git -C ${SOURCE_DIR} describe --always --dirty --abbrev=12 --exclude=*
                OUTPUT_VARIABLE commit ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
if(failed OR NOT commit)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "namespace baton::app {
extern const char kCommit[];
const char kCommit[] = \"@commit@\";
}  // namespace baton::app
" @ONLY)
