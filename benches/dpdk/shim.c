/* The least of DPDK's rte_fib and rte_fib6 that the lookup benchmark needs. Built only when WARREN_DPDK is set;
 * see build.rs. */
#include <stdint.h>
#include <stdio.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_fib.h>
#include <rte_fib6.h>
#include <rte_log.h>

/* Starts the environment layer, with reserved huge pages or without. 0 on success. */
int warren_dpdk_start(int huge) {
	char *with[] = {"warren", "--in-memory", "--no-pci", "--no-telemetry", "--log-level=1", "-l", "0", "-m", "768",
			"--force-max-simd-bitwidth=512"};
	char *without[] = {"warren", "--no-huge", "--no-shconf", "--no-pci", "--no-telemetry", "--log-level=1",
			   "-l", "0", "-m", "2048", "--force-max-simd-bitwidth=512"};
	int n = huge ? 10 : 11;
	return rte_eal_init(n, huge ? with : without) < 0 ? -1 : 0;
}

void *warren_fib4_new(int max_routes, uint32_t groups) {
	static int number;
	char name[32];
	struct rte_fib_conf conf = {0};
	snprintf(name, sizeof(name), "fib4-%d", number++);
	conf.type = RTE_FIB_DIR24_8;
	conf.max_routes = max_routes;
	conf.dir24_8.nh_sz = RTE_FIB_DIR24_8_2B;
	conf.dir24_8.num_tbl8 = groups;
	return rte_fib_create(name, -1, &conf);
}

/* The vector code where the processor has it: 1, the scalar code otherwise: 0. */
int warren_fib4_vector(void *fib) {
	return rte_fib_select_lookup(fib, RTE_FIB_LOOKUP_DIR24_8_VECTOR_AVX512) == 0;
}

int warren_fib4_add(void *fib, uint32_t ip, uint8_t depth, uint64_t next_hop) {
	return rte_fib_add(fib, ip, depth, next_hop);
}

int warren_fib4_lookup(void *fib, uint32_t *ips, uint64_t *next_hops, int n) {
	return rte_fib_lookup_bulk(fib, ips, next_hops, n);
}

void *warren_fib6_new(int max_routes, uint32_t groups) {
	static int number;
	char name[32];
	struct rte_fib6_conf conf = {0};
	snprintf(name, sizeof(name), "fib6-%d", number++);
	conf.type = RTE_FIB6_TRIE;
	conf.max_routes = max_routes;
	conf.trie.nh_sz = RTE_FIB6_TRIE_4B;
	conf.trie.num_tbl8 = groups;
	return rte_fib6_create(name, -1, &conf);
}

int warren_fib6_vector(void *fib) {
	return rte_fib6_select_lookup(fib, RTE_FIB6_LOOKUP_TRIE_VECTOR_AVX512) == 0;
}

int warren_fib6_add(void *fib, const uint8_t *ip, uint8_t depth, uint64_t next_hop) {
	return rte_fib6_add(fib, ip, depth, next_hop);
}

int warren_fib6_lookup(void *fib, uint8_t *ips, uint64_t *next_hops, int n) {
	return rte_fib6_lookup_bulk(fib, (uint8_t (*)[16])ips, next_hops, n);
}
