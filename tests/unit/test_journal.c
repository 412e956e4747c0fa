#include "harness/test.h"
int main(void) { return 0; }
