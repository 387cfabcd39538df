// golden_test BUNDLE PROBES: ten lines for a test of your own.
#include <cstdio>

#include "vit_edge.hpp"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  vit_edge::Bundle bundle(argv[1]);
  const auto proof = vit_edge::prove(bundle, argv[2]);
  std::fputs(proof.text().c_str(), stdout);
  return proof.holds() ? 0 : 4;
}
