// The time of an all-reduce of f32 over MPI: for each BYTES ROUNDS SAMPLES of the arguments, rank 0 prints a line
// `BYTES SECONDS` for each sample, the seconds being those of one round.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, world;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    for (int i = 1; i + 2 < argc; i += 3) {
        size_t bytes = strtoul(argv[i], NULL, 10);
        int rounds = atoi(argv[i + 1]), samples = atoi(argv[i + 2]);
        int count = (int)(bytes / sizeof(float));
        float *values = malloc(bytes);
        for (int k = 0; k < count; k++) values[k] = 1.0f;
        MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        for (int k = 0; k < count; k++) {
            if (values[k] != (float)world) MPI_Abort(MPI_COMM_WORLD, 1);
            values[k] = 0.0f;
        }
        for (int s = 0; s < samples; s++) {
            double started = MPI_Wtime();
            for (int r = 0; r < rounds; r++)
                MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
            if (rank == 0) printf("%zu %.9f\n", bytes, (MPI_Wtime() - started) / rounds);
        }
        free(values);
    }
    MPI_Finalize();
    return 0;
}
