#include <algorithm>
#include <cassert>
#include <functional>
#include <queue>
#include <stdexcept>
#include <utility>

#include "index/index.h"

namespace syne::index {

// Sample j of a component with share s may be sample number k (counted from 1) only where the component's count
// stays within 1 - 1/m of s * k before and after: from the first k with s * k >= j + 1/m to the first with
// s * k > j + 1 - 1/m, where m = 2n - 2. Tijdeman shows that such an order exists; with unit jobs of integer
// release and deadline, always taking the released job of the earliest deadline finds it.
void period_table(const int64_t* numerators, size_t num_components, int64_t period, uint16_t* component, int32_t* rank) {
  int64_t num_positive = 0;
  for (size_t c = 0; c < num_components; ++c) num_positive += numerators[c] > 0;
  if (num_positive == 1) {
    auto only = static_cast<uint16_t>(std::find_if(numerators, numerators + num_components, [](int64_t n) { return n > 0; }) - numerators);
    for (int64_t k = 0; k < period; ++k) {
      component[k] = only;
      rank[k] = static_cast<int32_t>(k);
    }
    return;
  }
  const int64_t m = 2 * num_positive - 2;
  auto release = [&](size_t c, int64_t j) {
    int64_t divisor = m * numerators[c];
    return (period * (j * m + 1) + divisor - 1) / divisor;
  };
  auto deadline = [&](size_t c, int64_t j) { return period * ((j + 1) * m - 1) / (m * numerators[c]) + 1; };

  constexpr int32_t none = -1;
  std::vector<int32_t> first_released(period + 2, none);  // head of a list of components released at k
  std::vector<int32_t> next_released(num_components, none);
  std::vector<int64_t> count(num_components, 0);
  using Job = std::pair<int64_t, uint32_t>;  // deadline, component
  std::priority_queue<Job, std::vector<Job>, std::greater<Job>> ready;
  auto announce = [&](size_t c, int64_t now) {
    if (count[c] == numerators[c]) return;
    int64_t k = release(c, count[c]);
    if (k <= now) {
      ready.emplace(deadline(c, count[c]), static_cast<uint32_t>(c));
    } else {
      next_released[c] = first_released[k];
      first_released[k] = static_cast<int32_t>(c);
    }
  };
  for (size_t c = 0; c < num_components; ++c) announce(c, 0);
  for (int64_t k = 1; k <= period; ++k) {
    for (int32_t c = first_released[k]; c != none; c = next_released[c]) ready.emplace(deadline(c, count[c]), static_cast<uint32_t>(c));
    if (ready.empty()) throw std::logic_error("period_table: the numerators do not sum to the period");
    auto [due, c] = ready.top();
    ready.pop();
    assert(k <= due);
    (void)due;
    component[k - 1] = static_cast<uint16_t>(c);
    rank[k - 1] = static_cast<int32_t>(count[c]++);
    announce(c, k);
  }
}

}  // namespace syne::index
