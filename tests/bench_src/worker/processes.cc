#include "processes.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "worker.h"

namespace sluice::bench {
namespace {

pid_t parent_of_helper = 0;

}  // namespace

void end_parent_of_helper() {
  if (parent_of_helper != 0) ::kill(parent_of_helper, SIGTERM);
}

SharedMemory::SharedMemory(std::size_t size)
    : address_(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)), size_(size) {
  if (address_ == MAP_FAILED) fail("mmap");
}

SharedMemory::~SharedMemory() { ::munmap(address_, size_); }

Barrier::Barrier(unsigned processes) : memory_(sizeof(pthread_barrier_t)) {
  pthread_barrierattr_t attributes;
  if (::pthread_barrierattr_init(&attributes) != 0 ||
      ::pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) != 0 ||
      ::pthread_barrier_init(memory_.as<pthread_barrier_t>(), &attributes, processes) != 0) {
    fail("pthread_barrier_init");
  }
  ::pthread_barrierattr_destroy(&attributes);
}

void Barrier::wait() {
  const int code = ::pthread_barrier_wait(memory_.as<pthread_barrier_t>());
  if (code != 0 && code != PTHREAD_BARRIER_SERIAL_THREAD) fail("pthread_barrier_wait");
}

Helpers::~Helpers() {
  for (const pid_t pid : pids_) {
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (status != 0) fail("a helper process failed");
  }
}

void Helpers::start(const std::function<void()>& body) {
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) fail("fork");
  if (pid > 0) {
    pids_.push_back(pid);
    return;
  }
  parent_of_helper = parent;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) std::_Exit(1);
  body();
  std::_Exit(0);
}

}  // namespace sluice::bench
