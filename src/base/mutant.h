#pragma once
// Planted bugs, for the test that shows that the simulation would catch them (tests/mutants/). At a fence of the protocol
//
//   if (*digest != expected && !BATON_MUTANT(digest_not_compared)) ...
//
// removes the fence in that test. In every other build it is the constant false, and nothing of it reaches an object file.
//
// There, BATON_MUTANTS names the header with the table of all mutants, of which one is chosen when the test starts; what is not in the
// table does not compile. Only .cc files may use it: the test compiles those a second time and takes everything else from the libraries.

#ifdef BATON_MUTANTS
#include BATON_MUTANTS
#define BATON_MUTANT(name) (::baton::mutants::active() == ::baton::mutants::Name::name)
#else
#define BATON_MUTANT(name) false
#endif
