#include "server/supervise.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstdlib>
#include <thread>

namespace sluice::server {
namespace {

Child start_shell(const std::string& script) {
  auto child = Child::start({"sh", "-c", script});
  EXPECT_TRUE(child);
  return std::move(*child);
}

class SuperviseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto signals = Signals::create();
    ASSERT_TRUE(signals);
    signals_.emplace(std::move(*signals));
  }
  std::optional<Signals> signals_;
};

TEST_F(SuperviseTest, ExitCodePassesThrough) {
  EXPECT_EQ(*start_shell("exit 0").wait(*signals_), 0);
  EXPECT_EQ(*start_shell("exit 42").wait(*signals_), 42);
}

TEST_F(SuperviseTest, KilledBySignalIs128PlusN) {
  EXPECT_EQ(*start_shell("kill -9 $$").wait(*signals_), 128 + 9);
}

TEST_F(SuperviseTest, SignalsArePassedOn) {
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) {
    // The child tells by a SIGCHLD that its trap stands.
    Child child = start_shell("trap 'exit 7' TERM INT HUP USR1 USR2; kill -CHLD " +
                              std::to_string(::getpid()) + "; while :; do sleep 0.05; done");
    const auto ready = signals_->wait(10'000);
    ASSERT_TRUE(ready && *ready);
    ASSERT_EQ((*ready)->number, SIGCHLD);
    ASSERT_EQ(::kill(::getpid(), number), 0);
    EXPECT_EQ(*child.wait(*signals_), 7) << number;
  }
}

TEST_F(SuperviseTest, ChildHasSignalsUnblockedAndSigpipeDefault) {
  // "yes" dies of SIGPIPE only if it is not ignored.
  EXPECT_EQ(*start_shell("yes | head -1 >/dev/null; exit 3").wait(*signals_), 3);
  EXPECT_EQ(*start_shell("kill -TERM $$; exit 5").wait(*signals_), 128 + SIGTERM);
}

TEST_F(SuperviseTest, MissingProgram) {
  const auto child = Child::start({"/no/such/program"});
  ASSERT_TRUE(child.has_error());
  EXPECT_EQ(child.error().code, Errc::not_found);
}

TEST_F(SuperviseTest, NotExecutable) {
  const auto child = Child::start({"/etc/passwd"});
  ASSERT_TRUE(child.has_error());
  EXPECT_NE(child.error().code, Errc::not_found);
}

TEST(ServiceManagerTest, IsToldAndTheApplicationIsNot) {
  const std::string name = "@sluice-test-" + std::to_string(::getpid());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path, name.size());
  address.sun_path[0] = 0;
  const UniqueFd manager(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  ASSERT_EQ(::bind(manager.get(), reinterpret_cast<const sockaddr*>(&address), length), 0);
  ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
  const ServiceManager service_manager;
  EXPECT_EQ(::getenv("NOTIFY_SOCKET"), nullptr);
  service_manager.tell("READY=1");
  char text[32] = {};
  EXPECT_EQ(::recv(manager.get(), text, sizeof text, MSG_DONTWAIT), 7);
  EXPECT_STREQ(text, "READY=1");
  ServiceManager().tell("READY=1");  // none: nothing happens
}

TEST_F(SuperviseTest, WaitTimesOut) {
  auto received = signals_->wait(0);
  while (received && *received) received = signals_->wait(0);  // SIGCHLDs of the cases before
  received = signals_->wait(1);
  ASSERT_TRUE(received);
  EXPECT_FALSE(received->has_value());
}

}  // namespace
}  // namespace sluice::server
