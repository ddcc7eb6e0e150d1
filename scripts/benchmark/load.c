/* Backends and clients of a gRPC proxy in one thread, so lean that they are no benchmark's bottleneck.
 *
 * Speaks as much of HTTP/2 as it needs: header blocks of others are never decoded. Prints the ports of its two backends,
 * then reads commands: MODE PORT STREAMS CONNECTIONS RATE SECONDS, and answers each with a line "begin" after the
 * warm-up and a line of JSON at the end.
 *   saturate  backends write 200-byte messages on all streams as fast as they are taken
 *   paced     RATE messages/s on each stream, each in its own phase        ticks   all streams at the same moment
 *   churn     STREAMS calls in flight, each of one message                 ttft    paced, and a short call every 5 ms
 *   hold      one message on each stream, then silence                     stall   saturate, but clients do not read
 * A request whose model begins with 't' gets a long stream, any other one message and the end; an empty one is a probe of
 * readiness. The last 8 bytes of a message say when it was sent. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { DATA, HEADERS, RESET = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, UPDATE = 8 };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8 };
enum { MESSAGE = 205, FRAME = 214, ROUNDS = 16, IN = 1 << 18, HIGH = 1 << 18, BUCKETS = 1 << 14, MAX_FD = 16384 };
enum { BACKENDS = 2, MAX_SAMPLES = 1 << 20 };

typedef struct Conn Conn;
typedef struct Stream {
    Conn *conn;
    uint32_t id, got, want;
    int64_t window, due, opened;
    int is_long, is_active, pos;
    uint8_t stamp[8];
    struct Stream *chain, *prev, *next; /* hash chain; list of all streams of this side */
} Stream;
struct Conn {
    int fd, is_client, is_paused;
    int64_t window, initial;
    uint32_t next_id;
    size_t in_len, out_len, out_pos, out_cap;
    uint8_t *in, *out;
};

static int poller, listeners[BACKENDS], num_samples;
static Conn *conns[MAX_FD], *prober; /* the client that makes short calls */
static Stream *buckets[BUCKETS], sending = {.prev = &sending, .next = &sending};
static int64_t interval, messages, ended, errors, latencies[MAX_SAMPLES];
static char mode[16];
static uint8_t message_frame[FRAME] = {0, 0, MESSAGE, DATA, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 18, 197, 1, 10, 3, 'l', 'l', 'm'};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(Conn *c, const void *data, size_t size) {
    if (c->out_len + size > c->out_cap) {
        c->out_cap = 2 * (c->out_len + size);
        c->out = realloc(c->out, c->out_cap);
    }
    memcpy(c->out + c->out_len, data, size);
    c->out_len += size;
}

static void put_frame(Conn *c, int type, int flags, uint32_t id, const void *payload, uint32_t size) {
    uint8_t head[9] = {size >> 16, size >> 8, size, type, flags, id >> 24, id >> 16, id >> 8, id};
    put(c, head, 9);
    put(c, payload, size);
}

static void flush(Conn *c) {
    while (c->out_pos < c->out_len) {
        ssize_t n = write(c->fd, c->out + c->out_pos, c->out_len - c->out_pos);
        if (n <= 0) break;
        c->out_pos += n;
    }
    if (c->out_pos == c->out_len) c->out_pos = c->out_len = 0;
    int is_paused = c->out_len > 0;
    if (is_paused == c->is_paused) return;
    c->is_paused = is_paused;
    struct epoll_event event = {.events = EPOLLIN | (is_paused ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static Stream **find(Conn *c, uint32_t id) {
    Stream **at = &buckets[(c->fd * 2654435761u ^ (id >> 1) * 40503u) % BUCKETS];
    while (*at && ((*at)->conn != c || (*at)->id != id)) at = &(*at)->chain;
    return at;
}

static Stream *add(Conn *c, uint32_t id) {
    Stream *s = malloc(sizeof *s), **at = find(c, id);
    *s = (Stream){.conn = c, .id = id, .window = c->initial, .prev = s, .next = s};
    return *at = s;
}

static void drop(Stream **at) {
    Stream *s = *at;
    *at = s->chain;
    s->prev->next = s->next, s->next->prev = s->prev;
    free(s);
}

static Conn *add_conn(int fd, int is_client) {
    static const uint8_t settings[] = {0, 3, 0, 0, 0xff, 0xff, 0, 4, 0x7f, 0xff, 0xff, 0xff, 0, 2, 0, 0, 0, 0};
    static const uint8_t window[] = {0x7f, 0xfe, 0, 0};
    Conn *c = conns[fd] = malloc(sizeof *c);
    *c = (Conn){.fd = fd, .is_client = is_client, .window = 65535, .initial = 65535, .next_id = 1, .in = malloc(IN)};
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    if (is_client) put(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    put_frame(c, SETTINGS, 0, 0, settings, is_client ? 18 : 12);
    put_frame(c, UPDATE, 0, 0, window, 4);
    flush(c);
    return c;
}

static void drop_conn(Conn *c) {
    for (int i = 0; i < BUCKETS; i++)
        for (Stream **at = &buckets[i]; *at;)
            if ((*at)->conn == c) drop(at); else at = &(*at)->chain;
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in), free(c->out), free(c);
}

static void call(Conn *c, int is_long) {
    static const char path[] = "\x83\x86\x04\x30/inference.GRPCInferenceService/ModelStreamInfer\x01\x05" "bench"
                               "\x0f\x10\x10" "application/grpc" "\x00\x02te\x08trailers";
    char request[] = "\0\0\0\0\x06\x0a\x04talk";
    if (!is_long) memcpy(request + 7, "once", 4);
    Stream *s = add(c, c->next_id);
    s->is_long = is_long, s->opened = now_ns();
    c->next_id += 2;
    put_frame(c, HEADERS, END_HEADERS, s->id, path, sizeof path - 1);
    put_frame(c, DATA, END_STREAM, s->id, request, 11);
}

static void send_message(Stream *s, int64_t now) {
    uint8_t *f = message_frame;
    f[5] = s->id >> 24, f[6] = s->id >> 16, f[7] = s->id >> 8, f[8] = s->id;
    memcpy(f + FRAME - 8, &now, 8);
    put(s->conn, f, FRAME);
    s->window -= MESSAGE, s->conn->window -= MESSAGE;
}

static void answer(Stream **at, const uint8_t *body) { /* a backend has a whole request */
    static const char begin[] = "\x88\x0f\x10\x10" "application/grpc", end[] = "\x00\x0bgrpc-status\x01" "0";
    Stream *s = *at;
    int64_t now = now_ns();
    put_frame(s->conn, HEADERS, END_HEADERS, s->id, begin, sizeof begin - 1);
    if (s->want == 5) put_frame(s->conn, DATA, 0, s->id, "\0\0\0\0\2\x08\1", 7);
    else send_message(s, now);
    if (s->want > 5 && body[7] == 't') {
        s->is_active = 1;
        s->due = interval ? now / interval * interval + (!strcmp(mode, "ticks") ? interval : rand() % interval + 1) : 0;
        s->next = sending.next, s->prev = &sending, s->next->prev = s->prev->next = s;
        return;
    }
    put_frame(s->conn, HEADERS, END_HEADERS | END_STREAM, s->id, end, sizeof end - 1);
    drop(at);
}

static void sample(int64_t ns) {
    if (num_samples < MAX_SAMPLES) latencies[num_samples++] = ns;
}

static void take_messages(Stream *s, const uint8_t *p, uint32_t size) { /* a client has some bytes */
    int is_timed = !strcmp(mode, "paced") || !strcmp(mode, "ticks");
    while (size) {
        uint32_t left = MESSAGE - s->pos, part = left < size ? left : size;
        for (uint32_t i = 0; is_timed && i < part; i++)
            if (s->pos + (int)i >= MESSAGE - 8) s->stamp[s->pos + i - MESSAGE + 8] = p[i];
        s->pos += part, p += part, size -= part;
        if (s->pos < MESSAGE) return;
        int64_t sent;
        memcpy(&sent, s->stamp, 8);
        if (is_timed && s->got) sample(now_ns() - sent);
        if (!s->got++ && !s->is_long) sample(now_ns() - s->opened);
        s->pos = 0, messages++;
    }
}

static void on_data(Conn *c, int flags, uint32_t id, const uint8_t *p, uint32_t size) {
    Stream **at = find(c, id), *s = *at;
    if (!s) return;
    if (flags & PADDED) size -= 1 + p[0], p++;
    if (c->is_client) return take_messages(s, p, size);
    if (s->is_active || !size) return;
    if (!s->got) s->want = 5 + ((uint32_t)p[1] << 24 | p[2] << 16 | p[3] << 8 | p[4]);
    s->got += size;
    if (s->got >= s->want) answer(at, p);
}

static void on_end(Conn *c, uint32_t id, int is_error) {
    Stream **at = find(c, id);
    if (!*at) return;
    int is_long = (*at)->is_long;
    drop(at);
    if (!c->is_client) return;
    if (is_error) errors++; else ended++;
    if (!is_long && !strcmp(mode, "churn")) call(c, 0);
}

static void on_settings(Conn *c, int flags, const uint8_t *p, uint32_t size) {
    if (flags & ACK) return;
    for (uint32_t i = 0; i + 6 <= size; i += 6) {
        if (p[i + 1] != 4) continue;
        int64_t initial = (uint32_t)p[i + 2] << 24 | p[i + 3] << 16 | p[i + 4] << 8 | p[i + 5];
        for (int b = 0; b < BUCKETS; b++)
            for (Stream *s = buckets[b]; s; s = s->chain)
                if (s->conn == c) s->window += initial - c->initial;
        c->initial = initial;
    }
    put_frame(c, SETTINGS, ACK, 0, "", 0);
}

static void on_frame(Conn *c, int type, int flags, uint32_t id, const uint8_t *p, uint32_t size) {
    if (type == DATA) on_data(c, flags, id, p, size);
    if (type == HEADERS && !c->is_client) add(c, id);
    if (type == SETTINGS) on_settings(c, flags, p, size);
    if (type == PING && !(flags & ACK)) put_frame(c, PING, ACK, 0, p, size);
    if (type == GOAWAY && c->is_client) errors++;
    if (type == UPDATE) {
        Stream *s = id ? *find(c, id) : NULL;
        int64_t more = (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
        if (s) s->window += more;
        if (!id) c->window += more;
    }
    if (type == RESET || (c->is_client && type <= HEADERS && flags & END_STREAM)) on_end(c, id, type == RESET);
}

static void read_from(Conn *c) {
    ssize_t n = read(c->fd, c->in + c->in_len, IN - c->in_len);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        if (c->is_client) errors++;
        return drop_conn(c);
    }
    if (n < 0) return;
    size_t end = c->in_len + n, pos = 0;
    if (!c->is_client && c->next_id == 1 && end >= 24) pos = 24, c->next_id = 0; /* the preface */
    while (end - pos >= 9) {
        uint8_t *h = c->in + pos;
        uint32_t size = h[0] << 16 | h[1] << 8 | h[2];
        if (end - pos < 9 + size) break;
        on_frame(c, h[3], h[4], (uint32_t)(h[5] & 0x7f) << 24 | h[6] << 16 | h[7] << 8 | h[8], h + 9, size);
        pos += 9 + size;
    }
    memmove(c->in, c->in + pos, end - pos);
    c->in_len = end - pos;
    flush(c);
}

static int64_t send_due(int64_t now) { /* returns when the next message is due */
    int64_t next = now + 10000000;
    int is_saturating = !interval && strcmp(mode, "hold");
    for (int round = 0; round < (is_saturating ? ROUNDS : 1); round++)
        for (Stream *s = sending.next; s != &sending; s = s->next) {
            int has_room = s->window >= MESSAGE && s->conn->window >= MESSAGE && s->conn->out_len < HIGH;
            if (is_saturating && has_room) send_message(s, now), next = now;
            if (!interval) continue;
            if (s->due <= now && has_room) send_message(s, now), s->due += interval;
            if (s->due < next) next = s->due;
        }
    for (Stream *s = sending.next; s != &sending; s = s->next)
        if (s->conn->out_len && !s->conn->is_paused) flush(s->conn);
    return next;
}

static void run_until(int64_t deadline) {
    struct epoll_event events[256];
    for (int64_t now = now_ns(), probe_at = now; now < deadline; now = now_ns()) {
        if (prober && now >= probe_at) call(prober, 0), flush(prober), probe_at = now + 5000000;
        int64_t wait = send_due(now) - now_ns();
        if (wait > deadline - now) wait = deadline - now;
        struct timespec timeout = {0, wait > 0 ? wait : 0};
        int count = epoll_pwait2(poller, events, 256, &timeout, NULL);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd, is_listener = fd == listeners[0] || fd == listeners[1];
            if (is_listener) add_conn(accept4(fd, NULL, NULL, SOCK_NONBLOCK), 0);
            else if (conns[fd] && events[i].events & EPOLLOUT) flush(conns[fd]);
            if (!is_listener && conns[fd] && events[i].events & ~EPOLLOUT) read_from(conns[fd]);
        }
    }
}

static int by_value(const void *a, const void *b) {
    return (*(int64_t *)a > *(int64_t *)b) - (*(int64_t *)a < *(int64_t *)b);
}

static double percentile(double part) {
    return num_samples ? latencies[(int)(part * (num_samples - 1))] / 1e3 : 0;
}

static void connect_clients(Conn **clients, int count, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < count; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address)) perror("connect"), exit(1);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        clients[i] = add_conn(fd, 1);
    }
}

static void stop_reading(void) {
    for (int fd = 0; fd < MAX_FD; fd++)
        if (conns[fd] && conns[fd]->is_client) epoll_ctl(poller, EPOLL_CTL_DEL, fd, NULL);
}

static void run(int port, int streams, int connections, double rate, double seconds) {
    Conn *clients[1024];
    int is_long = strcmp(mode, "churn");
    interval = rate > 0 ? 1e9 / rate : 0, messages = ended = errors = 0;
    connect_clients(clients, connections, port);
    for (int i = 0; i < streams; i++) call(clients[i % connections], is_long);
    for (int i = 0; i < connections; i++) flush(clients[i]);
    prober = strcmp(mode, "ttft") ? NULL : clients[0];
    run_until(now_ns() + 1000000000LL);
    if (!strcmp(mode, "stall")) stop_reading();
    printf("begin\n");
    int64_t begin = now_ns(), num_messages = messages, num_ended = ended;
    num_samples = 0;
    run_until(begin + seconds * 1e9);
    double elapsed = (now_ns() - begin) / 1e9;
    qsort(latencies, num_samples, sizeof *latencies, by_value);
    printf("{\"messages\": %ld, \"calls\": %ld, \"errors\": %ld, \"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           messages - num_messages, ended - num_ended, errors, elapsed, percentile(0.5), percentile(0.99));
    prober = NULL, mode[0] = 0, interval = 1000000000;
    for (int fd = 0; fd < MAX_FD; fd++)
        if (conns[fd] && conns[fd]->is_client) drop_conn(conns[fd]);
    run_until(now_ns() + 300000000LL); /* for the proxy to notice */
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    for (int i = 0; i < BACKENDS; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof address;
        int fd = listeners[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096)) perror("listen"), exit(1);
        getsockname(fd, (struct sockaddr *)&address, &size);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        printf("%d%c", ntohs(address.sin_port), i + 1 < BACKENDS ? ' ' : '\n');
    }
    fcntl(0, F_SETFL, O_NONBLOCK);
    for (char line[128];;) {
        int port, streams, connections;
        double rate, seconds;
        ssize_t n = read(0, line, sizeof line - 1);
        if (n == 0) return 0;
        line[n > 0 ? n : 0] = 0;
        if (sscanf(line, "%15s %d %d %d %lf %lf", mode, &port, &streams, &connections, &rate, &seconds) == 6)
            run(port, streams, connections, rate, seconds);
        run_until(now_ns() + 20000000LL); /* backends answer between commands too */
    }
}
