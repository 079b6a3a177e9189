#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>

#include "index/index.h"

namespace syne::index {

namespace {

constexpr int max_mappings = 4096;
constexpr size_t max_path_bytes = 512;

// A fixed table: a signal handler may neither allocate nor lock. A slot is free while its size is 0.
struct Mapping {
  std::atomic<uintptr_t> start{0};
  std::atomic<size_t> bytes{0};
  char path[max_path_bytes] = {};
};

Mapping mappings[max_mappings];
struct sigaction previous_action;
std::atomic<bool> told{false};

void tell(const char* path) {
  const char* parts[] = {"\n", path, ": was truncated, or its disk failed, while it was being read (SIGBUS); restore it and start again\n"};
  char line[max_path_bytes + 128];
  size_t length = 0;
  for (const char* part : parts) {
    size_t count = std::min(std::strlen(part), sizeof line - length);
    std::memcpy(line + length, part, count);
    length += count;
  }
  if (write(STDERR_FILENO, line, length) < 0) return;  // nobody is left to be told
}

// Names the file, hands SIGBUS back to whoever had it, and lets the fault happen again: the process dies of it.
// A handler that was installed later (faulthandler) passes the signal on without the address: then files are looked at.
void on_bus_error(int signal, siginfo_t* info, void*) {
  const bool is_fault = info->si_code > 0;
  if (told.exchange(true)) {
    std::signal(signal, SIG_DFL);
  } else {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    const char* named = "";  // a file may be mapped twice
    for (Mapping& mapping : mappings) {
      const size_t bytes = mapping.bytes.load();
      if (bytes == 0) continue;
      struct stat status;
      const bool hit = is_fault ? address - mapping.start.load() < bytes
                                : stat(mapping.path, &status) == 0 && static_cast<size_t>(status.st_size) < bytes;
      if (hit && std::strcmp(named, mapping.path) != 0) tell(named = mapping.path);
    }
    sigaction(signal, &previous_action, nullptr);
  }
  if (!is_fault) raise(signal);
}

void install_handler() {
  static bool installed = false;
  if (installed) return;
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  installed = sigaction(SIGBUS, &action, &previous_action) == 0;
}

}  // namespace

int watch_mapping(uintptr_t start, size_t bytes, const char* path) {
  install_handler();
  for (int slot = 0; slot < max_mappings && bytes > 0; ++slot) {
    Mapping& mapping = mappings[slot];
    if (mapping.bytes.load() != 0) continue;
    std::strncpy(mapping.path, path, max_path_bytes - 1);
    mapping.start.store(start);
    mapping.bytes.store(bytes);
    return slot;
  }
  return -1;
}

void forget_mapping(int slot) {
  if (slot >= 0 && slot < max_mappings) mappings[slot].bytes.store(0);
}

}  // namespace syne::index
