//! The executor: wakers, time, hand-overs, shutdown; on a ring and without one.

use parallax_block::{Buffer, ErrorKind, Runtime};
use parallax_device::{IoMode, Listener, Reactor, ReactorHandle, ReactorOptions, SendPart, Stream};
use std::{
    future::poll_fn,
    io::Write,
    os::unix::net::{UnixListener, UnixStream},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::Poll,
    time::{Duration, Instant},
};

fn on_both(test: impl Fn(ReactorHandle)) {
    for io in [IoMode::Uring, IoMode::Threads] {
        let reactor = Reactor::start("test", ReactorOptions { io, ..ReactorOptions::default() }).unwrap();
        assert_eq!(reactor.io(), io);
        test(reactor.clone());
        reactor.shutdown();
    }
}

fn yield_once() -> impl Future<Output = ()> {
    let mut yielded = false;
    poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

#[test]
fn a_task_answers_to_another_thread() {
    on_both(|reactor| {
        let name = reactor.block_on(async { std::thread::current().name().map(str::to_owned) }).unwrap();
        assert_eq!(name.as_deref(), Some("test"));
    });
}

#[test]
fn a_task_that_is_started_near_runs_on_the_thread_that_starts_it() {
    on_both(|home| {
        let other =
            Reactor::start("other", ReactorOptions { io: home.io(), ..ReactorOptions::default() }).unwrap();
        let near = |home: &ReactorHandle| {
            let (answer, answered) = mpsc::channel();
            home.spawn_near(Box::pin(async move { answer.send(std::thread::current().id()).unwrap() }));
            answered
        };
        let thread =
            |reactor: &ReactorHandle| reactor.block_on(async { std::thread::current().id() }).unwrap();
        let starter = home.clone();
        let answered = other.block_on(async move { near(&starter) }).unwrap();
        assert_eq!(answered.recv().unwrap(), thread(&other));
        assert_eq!(
            near(&home).recv().unwrap(),
            thread(&home),
            "from a thread without a reactor it goes home"
        );
        other.shutdown();
    });
}

#[test]
fn tasks_that_yield_take_turns() {
    on_both(|reactor| {
        let count = Arc::new(AtomicUsize::new(0));
        let joins: Vec<_> = (0..50)
            .map(|_| {
                let count = Arc::clone(&count);
                reactor.run(async move {
                    for _ in 0..100 {
                        yield_once().await;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        reactor
            .block_on(async {
                for join in joins {
                    join.await.unwrap()
                }
            })
            .unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 5000);
    });
}

#[test]
fn no_wake_up_is_lost_between_threads() {
    for (first, second) in [(IoMode::Uring, IoMode::Uring), (IoMode::Uring, IoMode::Threads)] {
        let start = |io| Reactor::start("ping", ReactorOptions { io, ..ReactorOptions::default() }).unwrap();
        let (first, second) = (start(first), start(second));
        let away = second.clone();
        let sum = first.run(async move {
            let mut sum = 0;
            for round in 0..20_000u64 {
                sum += away.run(async move { round }).await.unwrap();
            }
            sum
        });
        assert_eq!(first.block_on(sum).unwrap().unwrap(), 20_000 * 19_999 / 2);
        first.shutdown();
        second.shutdown();
    }
}

#[test]
fn sleeps_end_in_order_of_their_deadlines() {
    on_both(|reactor| {
        let (tell, told) = mpsc::channel();
        let started = Instant::now();
        // One task makes them all, so that their deadlines are in order on a busy machine too.
        let inside = reactor.clone();
        reactor.spawn(async move {
            for millis in [60, 20, 40] {
                let (tell, sleep) = (tell.clone(), inside.sleep(Duration::from_millis(millis)));
                inside.spawn(async move {
                    sleep.await;
                    tell.send(millis).unwrap();
                });
            }
        });
        assert_eq!(told.iter().collect::<Vec<_>>(), [20, 40, 60]);
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(60) && took < Duration::from_secs(20), "{took:?}");
    });
}

#[test]
fn a_sleep_that_nobody_waits_for_is_forgotten() {
    on_both(|reactor| {
        let timer = reactor.clone();
        reactor
            .block_on(async move {
                let mut long = timer.sleep(Duration::from_secs(3600));
                assert!(poll_once(&mut long).await.is_pending());
                drop(long);
                timer.sleep(Duration::from_millis(1)).await;
            })
            .unwrap();
    });
}

#[test]
fn a_thread_without_work_uses_no_processor_time() {
    on_both(|reactor| {
        let cpu = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
        };
        // A client that says nothing is no work either.
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let stream = Stream::from(ours);
        reactor.spawn(async move { drop(stream.receive(Buffer::zeroed(1), 0..1).await) });
        let before = reactor.block_on(async move { cpu() }).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let after = reactor.block_on(async move { cpu() }).unwrap();
        assert!(after - before < Duration::from_millis(5), "{:?}", after - before);
    });
}

#[test]
fn a_panic_ends_its_own_task_only() {
    on_both(|reactor| {
        let answer = reactor.run(async {
            if std::hint::black_box(true) {
                panic!("on purpose");
            }
        });
        let error = reactor.block_on(answer).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(reactor.block_on(async { 7 }).unwrap(), 7);
    });
}

#[test]
fn blocking_on_its_own_thread_is_refused() {
    on_both(|reactor| {
        let inside = reactor.clone();
        let error = reactor.block_on(async move { inside.block_on(async {}).unwrap_err() }).unwrap();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    });
}

#[test]
fn shutdown_drops_tasks_and_cancels_what_waits_for_a_peer() {
    on_both(|reactor| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let stream = Stream::from(ours);
        let forever = reactor.run(async move { stream.receive(Buffer::zeroed(10), 0..10).await.1 });
        let timer = reactor.clone();
        let sleeper = reactor.run(async move { timer.sleep(Duration::from_secs(3600)).await });
        reactor.block_on(yield_once()).unwrap();
        reactor.shutdown();
        let other = Reactor::start("other", ReactorOptions::default()).unwrap();
        assert_eq!(other.block_on(forever).unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(other.block_on(sleeper).unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(reactor.block_on(async {}).unwrap_err().kind(), ErrorKind::Cancelled);
        reactor.shutdown();
        other.shutdown();
    });
}

#[test]
fn a_message_larger_than_the_socket_arrives_whole() {
    on_both(|reactor| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, theirs) = (Stream::from(ours), Stream::from(theirs));
        let content: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
        let data = Buffer::copy_of(&content);
        let sender = reactor.run(async move {
            let parts = vec![SendPart::inline(b"head"), SendPart::Data(data), SendPart::inline(b"tail")];
            let (parts, result) = ours.send(parts).await;
            result.unwrap();
            assert_eq!(parts.len(), 3);
        });
        let received = reactor
            .block_on(async move {
                let (buffer, count) = theirs.receive_all(Buffer::zeroed(3_000_008), 0..3_000_008).await;
                assert_eq!(count.unwrap(), 3_000_008);
                sender.await.unwrap();
                let (_, count) = theirs.receive(Buffer::zeroed(1), 0..1).await;
                assert_eq!(count.unwrap(), 0, "the sender has closed");
                buffer
            })
            .unwrap();
        assert_eq!(&received[..4], b"head");
        assert_eq!(received[4..3_000_004], content);
        assert_eq!(&received[3_000_004..], b"tail");
    });
}

#[test]
fn what_is_here_is_received_at_once_and_nothing_is_waited_for() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream::from(ours);
    let mut bytes = [0; 8];
    assert_eq!(stream.receive_now(&mut bytes).unwrap(), None);
    (&theirs).write_all(b"twelve bytes").unwrap();
    assert_eq!(stream.receive_now(&mut bytes).unwrap(), Some(8));
    assert_eq!(stream.receive_now(&mut bytes).unwrap(), Some(4));
    assert_eq!(&bytes, b"ytesve b");
    drop(theirs);
    assert_eq!(
        stream.receive_now(&mut bytes).unwrap(),
        Some(0),
        "a peer that has closed is no reason to wait"
    );
}

#[test]
fn dropping_a_receive_leaves_the_bytes_for_the_next_one() {
    on_both(|reactor| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, theirs) = (Stream::from(ours), Stream::from(theirs));
        let timer = reactor.clone();
        let text = reactor
            .block_on(async move {
                let mut given_up = Box::pin(theirs.receive(Buffer::zeroed(5), 0..5));
                assert!(poll_once(&mut given_up).await.is_pending());
                drop(given_up);
                timer.sleep(Duration::from_millis(20)).await;
                ours.send(vec![SendPart::inline(b"hello")]).await.1.unwrap();
                theirs.receive_all(Buffer::zeroed(5), 0..5).await.0
            })
            .unwrap();
        assert_eq!(&text[..], b"hello");
    });
}

#[test]
fn connections_are_accepted_until_the_listener_closes() {
    on_both(|reactor| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = Listener::from(UnixListener::bind(&path).unwrap());
        let closer = listener.clone();
        let server = reactor.run(async move {
            let mut accepted = 0;
            loop {
                match listener.accept().await {
                    Ok(stream) => {
                        stream.send(vec![SendPart::inline(b"x")]).await.1.unwrap();
                        accepted += 1;
                    }
                    Err(error) => return (accepted, error.kind()),
                }
            }
        });
        for _ in 0..3 {
            let mut byte = [0];
            std::io::Read::read_exact(&mut UnixStream::connect(&path).unwrap(), &mut byte).unwrap();
        }
        closer.close();
        assert_eq!(reactor.block_on(server).unwrap().unwrap(), (3, ErrorKind::Cancelled));
    });
}

#[test]
fn sockets_need_a_reactor() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let stream = Stream::from(ours);
    let mut receive = Box::pin(stream.receive(Buffer::zeroed(1), 0..1));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let Poll::Ready((_, result)) = receive.as_mut().poll(&mut cx) else { panic!("it can only fail") };
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
}
