// libfuse's low-level API, with the one version of it that we use. Only fuse/*.cc include this.
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
