//! All limits. Input over a limit gets an error that names the limit, or is cut.

/// The newest version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest version of the protocol that this crate speaks: at most the one before
/// [`PROTOCOL_VERSION`], so that two neighbouring releases always work together.
pub const PROTOCOL_VERSION_OLDEST: u16 = 1;

/// Bytes of one ZeroMQ frame, and so of one message.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Frames of one message as the application sees it (identity frame not counted).
pub const PARTS_MAX: usize = 2;

/// Bytes of the name of a job, node or label.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of the value of a label.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Labels of a node, or required by a job.
pub const LABELS_MAX: usize = 64;
/// Bytes of an image reference.
pub const IMAGE_BYTES_MAX: usize = 512;
/// Bytes of a path: working folder, mount source or target (`PATH_MAX` of Linux).
pub const PATH_BYTES_MAX: usize = 4096;
/// Capabilities that a job may ask for.
pub const CAPABILITIES_MAX: usize = 64;
/// Mounts of a job; the same limit holds for its volumes and for its folders in memory (tmpfs).
pub const MOUNTS_MAX: usize = 64;
/// Entries of each other list of options of a container: extra hosts, devices, security options.
pub const CONTAINER_OPTIONS_MAX: usize = 64;
/// Bytes of all lists of options of a container together: mounts, volumes, labels and the others.
pub const CONTAINER_OPTIONS_BYTES_MAX: usize = 128 << 10;
/// Files that a job contains.
pub const FILES_MAX: usize = 64;
/// Bytes of these files with their paths.
pub const FILES_BYTES_MAX: usize = 256 << 10;

/// Bytes of a command with all its arguments.
pub const COMMAND_BYTES_MAX: usize = 128 << 10;
/// Arguments of a command, the program included.
pub const COMMAND_ARGS_MAX: usize = 16_384;
/// Bytes of a job's environment, names and values together.
pub const ENV_BYTES_MAX: usize = 128 << 10;
/// Variables of a job's environment.
pub const ENV_VARS_MAX: usize = 4096;
/// Bytes of a job file (TOML).
pub const JOB_FILE_BYTES_MAX: u64 = 1 << 20;

/// Tasks of one job.
pub const ARRAY_TASKS_MAX: u32 = 10_000_000;
/// Retries of one task.
pub const RETRIES_MAX: u32 = 1000;
/// Numbers and ranges in one list, such as the tasks to requeue.
pub const RANGES_MAX: usize = 1000;
/// The nodes where a task failed that its next attempt avoids: the last ones.
pub const AVOIDED_NODES_MAX: usize = 4;
/// Milliseconds for which a retry waits for room on another node than those where the task failed.
pub const AVOID_MS_MAX: u64 = 60_000;
/// Tasks that one step requeues.
pub const REQUEUE_TASKS_MAX: usize = 1000;
/// Groups of failed tasks in one reply.
pub const FAILED_GROUPS_MAX: usize = 500;
/// Nodes that a group of failed tasks names.
pub const FAILED_NODES_SHOWN: usize = 5;
/// Named resources that a node offers, or that a job needs.
pub const RESOURCES_MAX: usize = 16;
/// Ids of one named resource of a node.
pub const RESOURCE_IDS_MAX: usize = 256;
/// Bytes of such an id.
pub const RESOURCE_ID_BYTES_MAX: usize = 128;
/// The most of a named resource, in thousandths.
pub const RESOURCE_MILLIS_MAX: u32 = 1_000_000_000;
/// Jobs that the drain of a node names.
pub const DRAIN_JOBS_SHOWN: usize = 5;
/// Jobs that have not ended, in one manager.
pub const JOBS_ACTIVE_MAX: usize = 1_000_000;
/// The range of a job's priority is `-PRIORITY_MAX..=PRIORITY_MAX`.
pub const PRIORITY_MAX: i32 = 1000;
/// Thousandths of a core that a task may request, or a node may offer.
pub const CPU_MILLIS_MAX: u32 = 1_000_000;
/// Bytes of memory that a task may request, or a node may offer (1 PiB).
pub const MEMORY_BYTES_MAX: u64 = 1 << 50;
/// Milliseconds of a task's timeout, grace or backoff (366 days).
pub const DURATION_MS_MAX: u64 = 366 * 24 * 3600 * 1000;

/// Jobs that one job waits for.
pub const UPSTREAM_MAX: usize = 10_000;
/// Jobs of one workflow.
pub const WORKFLOW_JOBS_MAX: usize = 10_000;
/// Dependencies of all jobs of one workflow together.
pub const WORKFLOW_DEPENDENCIES_MAX: usize = 100_000;
/// Bytes of a workflow, before it is compressed, and of a workflow file (TOML).
pub const WORKFLOW_BYTES_MAX: usize = 16 << 20;
/// Dependencies of one job that the list of a workflow's jobs names.
pub const DEPENDENCIES_SHOWN: usize = 100;

/// Attempts that one node holds at a time.
pub const ATTEMPTS_PER_NODE_MAX: usize = 10_000;
/// Nodes in one manager.
pub const NODES_MAX: usize = 10_000;
/// Rows of one `starts`, `stops` or `reports` message.
pub const BATCH_ROWS_MAX: usize = 4096;
/// Bytes of one message between an agent and the supervisor of its processes.
pub const SUPERVISOR_FRAME_BYTES_MAX: usize = 2 << 20;
/// Milliseconds that the start of a process may take. A start can hang on a dead network mount.
pub const PROCESS_START_MS_MAX: u64 = 10_000;
/// Hung starts of processes on one node. At this number the node starts no more processes.
pub const PROCESS_STARTS_HUNG_MAX: usize = 16;
/// Bytes of a free text in a report: why an attempt failed.
pub const MESSAGE_BYTES_MAX: usize = 2048;

/// Services in one manager.
pub const SERVICES_MAX: usize = 10_000;
/// Services that one service waits for before its first replica starts.
pub const DEPENDENCIES_MAX: usize = 64;
/// Networks that a container joins.
pub const NETWORKS_MAX: usize = 16;
/// Named volumes in a cluster.
pub const VOLUMES_MAX: usize = 10_000;
/// Jobs that a row of the list of volumes names.
pub const VOLUME_JOBS_SHOWN: usize = 10;
/// Replicas of one service.
pub const REPLICAS_MAX: u32 = 1000;
/// Ports of one service.
pub const PORTS_MAX: usize = 64;
/// Published ports of which a node says why they are not open.
pub const PORTS_CLOSED_MAX: usize = 64;
/// Revisions of one service that the manager keeps.
pub const REVISIONS_KEPT: u32 = 20;
/// Milliseconds for which a replica must be healthy until its earlier failures no longer count.
pub const RESTART_RESET_MS: u64 = 600_000;
/// Milliseconds that the manager waits until the proxies of all nodes that are not lost have taken a
/// replica out.
pub const PROXY_ACK_MS_MAX: u64 = 30_000;

/// Queues in one manager, besides the default one.
pub const QUEUES_MAX: usize = 256;
/// The highest weight of a queue.
pub const QUEUE_WEIGHT_MAX: u32 = 1000;
/// Callers in the detail of a queue.
pub const QUEUE_CALLERS_SHOWN: usize = 100;
/// Tasks of one job that have a dead-letter job: when more have failed, the further ones have none.
pub const DEAD_LETTERS_PER_JOB: u32 = 10;

/// Schedules in one manager.
pub const SCHEDULES_MAX: usize = 10_000;
/// Bytes of a cron pattern.
pub const CRON_BYTES_MAX: usize = 256;
/// Bytes of the name of a time zone.
pub const ZONE_BYTES_MAX: usize = 64;
/// Minimum milliseconds between two runs of a schedule with an interval, and of its catch-up.
pub const SCHEDULE_MS_MIN: u64 = 1_000;
/// Instants of a schedule that is shown.
pub const SCHEDULE_NEXT_SHOWN: usize = 5;
/// Rows of the history of one schedule that the manager keeps.
pub const SCHEDULE_RUNS_KEPT: u64 = 1_000;
/// Missed instants of a cron pattern that are counted together. A larger number is shown as this one.
pub const SCHEDULE_MISSED_COUNTED: u32 = 1_000;

/// Rows of one page of `jobs`, `tasks` or `nodes`.
pub const PAGE_ROWS_MAX: u32 = 1000;
/// Default of how long the manager keeps ended jobs, lost nodes and revoked keys, in milliseconds (90
/// days).
pub const KEEP_MS_DEFAULT: u64 = 90 * 24 * 3600 * 1000;
/// Default of how many attempts of ended jobs the manager keeps.
pub const KEEP_ATTEMPTS_DEFAULT: u64 = 10_000_000;
/// Jobs that one `forget` covers.
pub const FORGET_JOBS_MAX: u32 = 1000;
/// Events of one chunk, and so of one reply to `events`.
pub const EVENTS_PER_CHUNK_MAX: usize = 4096;
/// Events that the manager keeps; older ones are removed, oldest first.
pub const EVENTS_KEPT: u64 = 1_000_000;
/// Bytes of log that one read returns.
pub const LOG_READ_BYTES_MAX: u32 = 256 << 10;
/// Bytes of a text that is looked for in a log.
pub const LOG_FIND_BYTES_MAX: usize = 256;
/// Bytes of log that one read looks through for a text.
pub const LOG_SEARCH_BYTES_MAX: u64 = 32 << 20;
/// Milliseconds that a read of a log, or of a job's state, may wait for a change.
pub const WAIT_MS_MAX: u32 = 30_000;
/// Log reads under way in one manager.
pub const LOG_READS_MAX: usize = 4096;

/// Steps that wait for the manager's disk. When this number is reached, no more messages are read.
pub const STORE_QUEUE_STEPS: usize = 1024;
/// Rows written by one commit, approximately: the last step may exceed it.
pub const COMMIT_ROWS_MAX: usize = 20_000;

/// Milliseconds that a session lives without a heartbeat.
pub const LEASE_MS_DEFAULT: u64 = 15_000;
/// Milliseconds between two heartbeats.
pub const HEARTBEAT_MS_DEFAULT: u64 = 1_000;
/// Milliseconds that the manager waits after the end of a lease before it retries a task elsewhere.
/// In this time an agent without contact kills its attempts.
pub const LEASE_MARGIN_MS: u64 = 5_000;
/// Milliseconds until a task that its node could not start is retried; doubled each time.
pub const NOT_STARTED_BACKOFF_MS: u64 = 1_000;
/// The maximum of that time.
pub const NOT_STARTED_BACKOFF_MS_MAX: u64 = 60_000;
/// Milliseconds after a task's timeout and grace within which its end is known.
pub const END_MARGIN_MS: u64 = 5_000;
/// Minimum milliseconds for which a node is reserved for the first job that waits for room.
pub const RESERVATION_MS_MIN: u64 = 60_000;
/// Milliseconds for which a node is reserved for a task that is sure to start there by then. It is
/// longer if the job has waited for longer.
pub const RESERVATION_AHEAD_MS: u64 = 3_600_000;
/// Milliseconds after which a `start` without any report is sent again.
pub const START_RESEND_MS: u64 = 10_000;

/// Bytes of a join token's text.
pub const TOKEN_TEXT_BYTES_MAX: usize = 4096;
/// Addresses in a join token.
pub const TOKEN_ADDRESSES_MAX: usize = 16;
/// Keys that a manager announces for the next connection.
pub const MANAGER_KEYS_MAX: usize = 4;
/// Tokens that a manager keeps, including those that can no longer be used.
pub const TOKENS_MAX: usize = 1000;
/// Machines and users that can join with one token.
pub const TOKEN_USES_MAX: u32 = 10_000;
/// Milliseconds until a token expires, by default (one hour).
pub const TOKEN_TTL_MS_DEFAULT: u64 = 3_600_000;
/// Milliseconds until an API token expires, by default (90 days).
pub const API_TOKEN_TTL_MS_DEFAULT: u64 = 90 * 24 * 3600 * 1000;
/// Keys that a manager keeps, including revoked ones.
pub const KEYS_MAX: usize = 100_000;

/// Bytes of a ZMTP `READY` command, and of any other command.
pub const COMMAND_FRAME_BYTES_MAX: usize = 512;
/// Bytes of a subscription to PUB: the topic, and the byte before it.
pub const SUBSCRIPTION_BYTES_MAX: usize = 64;
/// Subscriptions and their ends on one connection.
pub const SUBSCRIPTIONS_MAX: u32 = 64;
/// Connections that have not identified themselves yet. A further connection is closed at once.
pub const HANDSHAKES_MAX: usize = 128;
/// The same limit for one address.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 32;
/// Milliseconds within which a connection must identify itself.
pub const HANDSHAKE_MS_MAX: u64 = 5_000;
/// Connections of one key at a time.
pub const CONNECTIONS_PER_KEY_MAX: usize = 64;

/// Bytes of messages that a client has not read, beyond the buffers of its system. Above that its
/// connection is closed.
pub const CLIENT_UNREAD_BYTES_MAX: u32 = 16 << 20;
/// The same limit for an agent.
pub const AGENT_UNREAD_BYTES_MAX: u32 = 64 << 20;
/// Bytes of messages that a peer has not read. While there are more, the manager reads nothing from
/// this peer.
pub const PAUSE_UNREAD_BYTES: usize = 256 << 10;
/// Bytes of publications that a subscriber has not read. While there are more, it misses
/// publications.
pub const PUBLICATIONS_UNREAD_BYTES_MAX: u32 = 4 << 20;
/// Bytes of messages on the way from all connections to the manager's ROUTER. The connections take
/// turns.
pub const TRUNK_BYTES_MAX: u32 = 256 << 10;
/// Requests of one connection that are being answered, or waiting, at a time.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 64;
/// Read requests that are answered a second for each core of the manager's machine, of all callers
/// together, while tasks start and end. The callers take turns, and further requests wait. The first
/// few requests of a connection do not count; a read of a log, which an agent answers, counts as two.
pub const READS_PER_SECOND_MAX: u32 = 300;

/// Connections to the HTTP API at a time. A further connection is closed at once.
pub const HTTP_CONNECTIONS_MAX: usize = 4096;
/// Bytes of the headers of one HTTP request.
pub const HTTP_HEADER_BYTES_MAX: usize = 16 << 10;
/// Nodes, and services, that have metrics of their own. Those of the others are summed.
pub const METRIC_NAMES_MAX: usize = 1000;
/// Headers of one HTTP request.
pub const HTTP_HEADERS_MAX: usize = 100;
