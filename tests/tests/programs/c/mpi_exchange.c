/* Two ranks that exchange small and large messages, from one side and from both at once; then small ones until there is a file
 * `enough`. Each prints what must not depend on how the bytes went. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { LARGE = 1 << 20, ROUNDS = 300 };

static unsigned *numbers(unsigned seed)
{
	unsigned *made = malloc(LARGE * sizeof *made);

	for (int at = 0; at < LARGE; at++)
		made[at] = seed = seed * 1664525u + 1013904223u;
	return made;
}

static unsigned sum(const unsigned *of)
{
	unsigned all = 0;

	for (int at = 0; at < LARGE; at++)
		all = all * 31 + of[at];
	return all;
}

int main(int count, char **arguments)
{
	int rank, go_on = 1;
	unsigned seen = 0, all;

	MPI_Init(&count, &arguments);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	int other = 1 - rank;

	for (unsigned round = 0; round < ROUNDS; round++) {
		unsigned number = round * (unsigned)(rank + 3), got;

		/* The first of rank 0, so that it connects. */
		if (rank == 0)
			MPI_Send(&number, 1, MPI_UNSIGNED, other, 1, MPI_COMM_WORLD);
		MPI_Recv(&got, 1, MPI_UNSIGNED, other, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		if (rank == 1)
			MPI_Send(&number, 1, MPI_UNSIGNED, other, 1, MPI_COMM_WORLD);
		seen = seen * 31 + got;
	}
	unsigned *mine = numbers((unsigned)rank), *theirs = calloc(LARGE, sizeof *theirs);
	for (int round = 0; round < 5; round++) {
		MPI_Request both[2];

		MPI_Irecv(theirs, LARGE, MPI_UNSIGNED, other, 2, MPI_COMM_WORLD, &both[0]);
		MPI_Isend(mine, LARGE, MPI_UNSIGNED, other, 2, MPI_COMM_WORLD, &both[1]);
		MPI_Waitall(2, both, MPI_STATUSES_IGNORE);
		seen = seen * 31 + sum(theirs);
		MPI_Allreduce(mine, theirs, LARGE, MPI_UNSIGNED, MPI_SUM, MPI_COMM_WORLD);
		seen = seen * 31 + sum(theirs);
	}
	while (go_on) {
		go_on = access("enough", F_OK) != 0;
		MPI_Bcast(&go_on, 1, MPI_INT, 0, MPI_COMM_WORLD);
		MPI_Barrier(MPI_COMM_WORLD);
	}
	MPI_Reduce(&seen, &all, 1, MPI_UNSIGNED, MPI_BXOR, 0, MPI_COMM_WORLD);
	if (rank == 0)
		printf("%08x\n", all);
	free(mine);
	free(theirs);
	return MPI_Finalize();
}
