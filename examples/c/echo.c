/* A UDP echo server in C, with libzmq and nothing else: an implementation of docs/app-protocol.md.
 *
 *     cc -O2 -o echo echo.c -lzmq && ./echo ADDRESS PORT        (with a stack running)
 *
 * It continues after the socket service is killed, because both ends number their frames and keep the last of them.
 * All integers of the protocol are little-endian, and so must be the machine.
 */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <zmq.h>

enum { SEND = 1, DATAGRAM = 2, HELLO = 128, RESUME = 129, REQUEST = 130, REPLY = 131, CREDIT = 132, REFUSAL = 135 };
enum { VERSION = 2, FRAME_MAX = 1 << 18, KEPT = 512, DATAGRAM_OVERHEAD = 256, CREDIT_BATCH = 100000 };

struct __attribute__((packed)) head { uint8_t version, kind; uint16_t count; uint32_t incarnation; uint64_t id, sequence; };
struct datagram { /* of what comes and of what goes; no padding: each field is aligned */
    uint32_t handle; uint8_t family, flags, ttl, tos; uint16_t port, interface; uint8_t peer[4], own[4];
};

static void *inbox, *outbox;
static char inbox_path[128];
static uint64_t id, sent, done;
static uint32_t incarnation, handle;
static int resumed;
static struct { char *octets; size_t length; } kept[KEPT]; /* frame number n is at n % KEPT */
static char answer[4096];                                   /* to the one request that is under way */

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, zmq_strerror(errno));
    exit(1);
}

static void transmit(const char *octets, size_t length)
{
    if (zmq_send(outbox, octets, length, 0) < 0)
        fail("zmq_send");
}

static void send_frame(int kind, const void *record, uint32_t length)
{
    int numbered = kind != HELLO && kind != RESUME;
    size_t size = sizeof(struct head) + sizeof length + length;
    char *frame = malloc(size);
    struct head head = {VERSION, kind, 1, 1, id, numbered ? ++sent : 0};
    memcpy(frame, &head, sizeof head);
    memcpy(frame + sizeof head, &length, sizeof length);
    memcpy(frame + sizeof head + sizeof length, record, length);
    transmit(frame, size);
    if (!numbered) {
        free(frame);
        return;
    }
    free(kept[sent % KEPT].octets);
    kept[sent % KEPT].octets = frame;
    kept[sent % KEPT].length = size;
}

/* The number behind "name": in flat JSON, or -1. */
static long long field(const char *json, const char *name)
{
    char quoted[40];
    snprintf(quoted, sizeof quoted, "\"%s\":", name);
    const char *found = strstr(json, quoted);
    return found ? atoll(found + strlen(quoted)) : -1;
}

static void greeted(int kind, uint32_t of, const char *json)
{
    char text[80];
    resumed = kind == RESUME;
    if (resumed && (uint64_t)field(json, "first") > done + 1)
        done = field(json, "first") - 1;
    if (kind != HELLO)
        return;
    incarnation = of;
    uint64_t next = field(json, "done") + 1;
    if (sent >= KEPT && next <= sent - KEPT)
        next = sent - KEPT + 1;
    if (next > sent + 1)
        next = sent + 1;
    send_frame(RESUME, text, snprintf(text, sizeof text, "{\"first\": %llu, \"done\": %llu}", (unsigned long long)next,
                                      (unsigned long long)done));
    uint64_t last = sent;
    for (; next <= last; next++)
        transmit(kept[next % KEPT].octets, kept[next % KEPT].length);
    uint32_t credit[2] = {handle, 1u << 31}; /* nothing is queued here */
    if (handle)
        send_frame(CREDIT, credit, sizeof credit);
}

static void echo(const char *record, uint32_t length)
{
    static uint32_t consumed;
    static _Alignas(8) char reply[65536 + sizeof(struct datagram)];
    struct datagram *head = (struct datagram *)reply;
    memcpy(reply, record, length);
    head->flags = head->ttl = head->tos = 0; /* whom to answer, and from which address, it says already */
    send_frame(SEND, reply, length);
    consumed += length - sizeof *head + DATAGRAM_OVERHEAD;
    if (consumed > CREDIT_BATCH) {
        uint32_t credit[2] = {handle, consumed};
        send_frame(CREDIT, credit, sizeof credit);
        consumed = 0;
    }
}

static void receive(void)
{
    static char frame[FRAME_MAX + 1];
    int length = zmq_recv(inbox, frame, FRAME_MAX, 0);
    if (length < (int)sizeof(struct head)) {
        if (length < 0 && errno == EAGAIN && access(inbox_path, F_OK) < 0) {
            fprintf(stderr, "echo: the stack is gone\n");
            exit(1);
        }
        if (length < 0 && errno != EINTR && errno != EAGAIN)
            fail("zmq_recv");
        return;
    }
    struct head head;
    memcpy(&head, frame, sizeof head);
    frame[length] = 0;
    char *record = frame + sizeof head + 4 * head.count;
    if (!id && head.kind == REFUSAL) {
        fprintf(stderr, "%s\n", record);
        exit(1);
    }
    if (!id)
        id = head.id; /* the service gives us one */
    if (head.id != id || head.incarnation < incarnation)
        return;
    if (head.sequence == 0) {
        greeted(head.kind, head.incarnation, record);
        return;
    }
    if (head.sequence != done + 1 && (head.sequence <= done || !resumed))
        return; /* repeated, or ahead of its turn: it comes again */
    done = head.sequence;
    for (int number = 0; number < head.count; number++) {
        uint32_t size;
        memcpy(&size, frame + sizeof head + 4 * number, sizeof size);
        if (head.kind == DATAGRAM)
            echo(record, size);
        else if (head.kind == REPLY && size < sizeof answer) {
            memcpy(answer, record, size);
            answer[size] = 0;
        }
        record += size;
    }
}

static const char *ask(const char *request)
{
    answer[0] = 0;
    send_frame(REQUEST, request, strlen(request));
    while (!answer[0])
        receive();
    if (field(answer, "errno")) {
        fprintf(stderr, "%s\n%s\n", request, answer);
        exit(1);
    }
    return answer;
}

int main(int count, char **arguments)
{
    char directory[80], address[160], text[200], name[32];
    int limit = 64, all = 0, soon = 1, linger = 0, gone_check_ms = 500;
    if (count != 3) {
        fprintf(stderr, "usage: echo ADDRESS PORT\n");
        return 2;
    }
    if (getenv("USERNET_DIR"))
        snprintf(directory, sizeof directory, "%s", getenv("USERNET_DIR"));
    else {
        const char *base = getenv("XDG_RUNTIME_DIR"), *name = getenv("USERNET_NAME"), *temporary = getenv("TMPDIR");
        if (base)
            snprintf(directory, sizeof directory, "%s/usernet/%s", base, name ? name : "default");
        else
            snprintf(directory, sizeof directory, "%s/usernet-%d/%s", temporary ? temporary : "/tmp", getuid(),
                     name ? name : "default");
    }
    uint64_t number;
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        fail("getrandom");
    snprintf(name, sizeof name, "app-%llx.sock", (unsigned long long)number | 1);

    void *context = zmq_ctx_new();
    inbox = zmq_socket(context, ZMQ_PULL);
    outbox = zmq_socket(context, ZMQ_PUSH);
    zmq_setsockopt(inbox, ZMQ_RCVHWM, &all, sizeof all);
    zmq_setsockopt(inbox, ZMQ_RCVTIMEO, &gone_check_ms, sizeof gone_check_ms);
    zmq_setsockopt(outbox, ZMQ_SNDHWM, &limit, sizeof limit);
    zmq_setsockopt(outbox, ZMQ_RECONNECT_IVL, &soon, sizeof soon);
    zmq_setsockopt(outbox, ZMQ_LINGER, &linger, sizeof linger);
    snprintf(inbox_path, sizeof inbox_path, "%s/sockets/%s", directory, name);
    snprintf(address, sizeof address, "ipc://%s", inbox_path);
    if (zmq_bind(inbox, address) < 0)
        fail(address);
    snprintf(address, sizeof address, "ipc://%s/sockets.sock", directory);
    if (zmq_connect(outbox, address) < 0)
        fail(address);

    send_frame(HELLO, text, snprintf(text, sizeof text, "{\"version\": %d, \"inbox\": \"%s\", \"done\": 0}", VERSION,
                                     name));
    while (!incarnation)
        receive();
    handle = field(ask("{\"id\": 1, \"op\": \"socket\", \"type\": \"dgram\"}"), "handle");
    snprintf(text, sizeof text, "{\"id\": 2, \"op\": \"bind\", \"handle\": %u, \"address\": \"%s\", \"port\": %d}", handle,
             arguments[1], atoi(arguments[2]));
    printf("echoing at %s:%lld\n", arguments[1], field(ask(text), "port"));
    fflush(stdout);
    for (;;)
        receive();
}
