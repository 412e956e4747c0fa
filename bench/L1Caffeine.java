/*
 * Caffeine under the workloads of bench/l1, as its child process: same keys, same sequences, commands on stdin, figures on stdout.
 *
 *     java -cp caffeine.jar L1Caffeine.java SEQUENCES LENGTH THREADS KEYS CAPACITY
 *
 * "get|churn|sampled|mixed THREADS SECONDS" runs once and answers with one line of figures; "bytes" answers with the heap that the
 * filled cache holds.  Keys are byte arrays hashed at every look-up, like everybody's here.  Caffeine runs as it comes: its
 * maintenance on the common pool.
 */
import com.github.benmanes.caffeine.cache.Cache;
import com.github.benmanes.caffeine.cache.Caffeine;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.RandomAccessFile;
import java.lang.management.ManagementFactory;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Locale;
import java.util.concurrent.CyclicBarrier;

public class L1Caffeine {
    static final int CHUNK = 512, SAMPLE = 8, SAMPLES = 1 << 20, VALUE_SIZE = 100, WRITE = 0x80000000;
    static final double WARM_UP = 0.25;

    static final class Key {
        final byte[] bytes;

        Key(int index) {
            bytes = String.format("user_feature_%08d", index).getBytes(StandardCharsets.US_ASCII);
        }

        @Override public int hashCode() {
            return Arrays.hashCode(bytes);
        }

        @Override public boolean equals(Object other) {
            return other instanceof Key && Arrays.equals(bytes, ((Key) other).bytes);
        }
    }

    static Key[] keys;
    static int[][] sequences;
    static int[] at;
    static Cache<Key, byte[]> cache;
    static volatile boolean warm, stop;

    static byte[] value(int index) {
        byte[] made = new byte[VALUE_SIZE];
        made[0] = (byte) index;
        return made;
    }

    static final class Worker extends Thread {
        final int number;
        final String op;
        final CyclicBarrier barrier;
        long ops, gets, hits, sum, expected, nanos;
        int samples;
        final long[] sample;

        Worker(int number, String op, CyclicBarrier barrier) {
            this.number = number;
            this.op = op;
            this.barrier = barrier;
            sample = new long[op.equals("sampled") ? SAMPLES : 0];
        }

        void loop(boolean timed) {
            final int[] sequence = sequences[number];
            final boolean churn = op.equals("churn") || op.equals("sampled"), mixed = op.equals("mixed");
            int next = at[number];
            while (timed ? !stop : !warm) {
                if (next == sequence.length)
                    next = 0;
                for (int i = 0; i < CHUNK; i++) {
                    int word = sequence[next++], index = word & ~WRITE;
                    Key key = keys[index];
                    if (mixed && word < 0) {
                        cache.put(key, value(index));
                        continue;
                    }
                    byte[] found;
                    if (sample.length > samples && i % SAMPLE == 0) {
                        long begin = System.nanoTime();
                        found = cache.getIfPresent(key);
                        sample[samples++] = System.nanoTime() - begin;
                    } else {
                        found = cache.getIfPresent(key);
                    }
                    gets++;
                    if (found != null) {
                        hits++;
                        sum += found[0] & 255;
                        expected += index & 255;
                    } else if (churn) {
                        cache.put(key, value(index));
                    }
                }
                ops += CHUNK;
            }
            at[number] = next;
        }

        @Override public void run() {
            try {
                loop(false);
                ops = gets = hits = sum = expected = 0;
                samples = 0;
                barrier.await();
                long began = System.nanoTime();
                loop(true);
                nanos = System.nanoTime() - began;
            } catch (Exception e) {
                throw new IllegalStateException(e);
            }
        }
    }

    static long cpu() {
        return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
    }

    static String run(String op, int threads, double seconds) throws Exception {
        CyclicBarrier barrier = new CyclicBarrier(threads + 1);
        Worker[] workers = new Worker[threads];
        warm = stop = false;
        for (int i = 0; i < threads; i++)
            (workers[i] = new Worker(i, op, barrier)).start();
        Thread.sleep((long) (seconds * WARM_UP * 1000));
        warm = true;
        barrier.await();
        long wall = System.nanoTime(), cpu = cpu();
        Thread.sleep((long) (seconds * 1000));
        stop = true;
        cpu = cpu() - cpu;
        wall = System.nanoTime() - wall;
        double ns = 0, rate = 0;
        long gets = 0, hits = 0, samples = 0;
        boolean wrong = false;
        for (Worker w : workers) {
            w.join();
            ns += (double) w.nanos / w.ops / threads;
            rate += w.ops * 1e9 / w.nanos;
            gets += w.gets;
            hits += w.hits;
            wrong |= w.sum != w.expected;
            samples += w.samples;
        }
        long[] all = new long[(int) samples];
        int n = 0;
        for (Worker w : workers) {
            System.arraycopy(w.sample, 0, all, n, w.samples);
            n += w.samples;
        }
        Arrays.sort(all);
        long overhead = Long.MAX_VALUE;
        for (int i = 0; i < 10000; i++) {
            long begin = System.nanoTime();
            overhead = Math.min(overhead, System.nanoTime() - begin);
        }
        double p50 = 0, p99 = 0, p999 = 0;
        if (n > 0) {
            p50 = Math.max(0, all[n / 2] - overhead);
            p99 = Math.max(0, all[n - 1 - n / 100] - overhead);
            p999 = Math.max(0, all[n - 1 - n / 1000] - overhead);
        }
        return String.format(Locale.ROOT, "%f %f %f %f %f %f %f %d", ns, rate, (double) cpu / wall,
            gets == 0 ? 0 : (double) hits / gets, p50, p99, p999, wrong ? 1 : 0);
    }

    static long used() throws Exception {
        for (int i = 0; i < 3; i++) {
            System.gc();
            Thread.sleep(100);
        }
        return Runtime.getRuntime().totalMemory() - Runtime.getRuntime().freeMemory();
    }

    public static void main(String[] args) throws Exception {
        int length = Integer.parseInt(args[1]), threads = Integer.parseInt(args[2]), n = Integer.parseInt(args[3]);
        int capacity = Integer.parseInt(args[4]);
        sequences = new int[threads][length];
        at = new int[threads];
        try (FileChannel channel = new RandomAccessFile(args[0], "r").getChannel()) {
            for (int i = 0; i < threads; i++)
                channel.map(FileChannel.MapMode.READ_ONLY, (long) i * length * 4, (long) length * 4)
                    .order(ByteOrder.LITTLE_ENDIAN).asIntBuffer().get(sequences[i]);
        }
        keys = new Key[n];
        long before = used();
        for (int i = 0; i < n; i++)
            keys[i] = new Key(i);
        cache = Caffeine.newBuilder().maximumSize(capacity == 0 ? n : capacity).build();
        for (int i = 0; i < n && capacity == 0; i++)
            cache.put(keys[i], value(i));
        System.out.println("ready");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = line.split(" ");
            if (words[0].equals("bytes"))
                System.out.println(used() - before);
            else
                System.out.println(run(words[0], Integer.parseInt(words[1]), Double.parseDouble(words[2])));
        }
    }
}
