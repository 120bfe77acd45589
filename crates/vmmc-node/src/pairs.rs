//! Pairs: the two ends of TCP connections, who holds them, and the memories that they exchange.
//!
//! The life of an end:
//!
//! ```text
//! matched --pair_export--> exported --(both are)--> ready --last holder drops or dies--> closed --queue empty--> gone
//! held only (announced to a service that was started later) ------------------------------^
//! ```
//!
//! While an end is open the service keeps a duplicate of its socket, so that the peer's unread bytes can be written into it
//! even if its own process is stopped. The duplicate is closed as soon as the last holder is gone and nothing waits to be
//! written, so that the kernel can send FIN.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::rc::Rc;

use vmmc_os::{
    ConnectionIdentity, Descriptor, Poller, Readiness, is_event, memory_len, memory_seals,
    random_u64,
};
use vmmc_proto::{
    Answer, BellPlace, BrokenReason, ExportId, MAX_EXPORT_LEN, PAGE_SIZE, PairId, ProcessId,
};
use vmmc_shm::table::ExportState;

use crate::clients::{ClientKey, Post};
use crate::customs::{Goods, Socket};
use crate::injection::{Injection, Lowered, Progress};
use crate::offers::OfferKey;
use crate::service::HELD;
use crate::slots::{Slot, Slots};
use crate::stream_words::{EndOnTcp, StreamWords};

/// What the pairs need of the rest of the service.
#[derive(Debug)]
pub(crate) struct Surroundings<'s> {
    pub(crate) slots: &'s mut Slots,
    pub(crate) poller: &'s Poller,
    pub(crate) posts: &'s mut Vec<Post>,
}

/// One end.
#[derive(Debug, Default)]
struct End {
    holders: Vec<ClientKey>,
    /// The user whose processes may hold it; known from the offer, or from the first hold.
    uid: Option<u32>,
    /// Known from the offer, or from the first hold.
    cookie: Option<u64>,
    socket: Option<Socket>,
    memory: Option<Box<Memory>>,
    /// Of its memory, where that is a stream's.
    words: Option<StreamWords>,
    slot: Option<Slot>,
    /// The last holder is gone, for this reason.
    closed: Option<BrokenReason>,
    /// When the last holder goes the socket stays, for what the peer has not read.
    lingers: bool,
    /// The peer has said that it needs nothing any more; it may say so first.
    settled: bool,
    injection: Injection,
    /// What was in `injection` is in the hall of the socket's user.
    away: bool,
    /// Bytes that it keeps here, as far as they are in the account of the peer's user.
    kept: u64,
    /// Bytes were written into its socket, after which it may write itself.
    handed: bool,
    /// Its stream has ended: its socket's is to end behind those bytes.
    finishes: bool,
    /// Waits for the socket to become writable, under this number.
    waiting: Option<u64>,
}

/// What `pair_export` says of the memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PairMemory {
    pub(crate) len: u64,
    pub(crate) mapped: u64,
    pub(crate) stream: bool,
}

/// What `pair_export` brought, until it is passed on.
#[derive(Debug)]
struct Memory {
    owner: ProcessId,
    memory: Descriptor,
    event: Descriptor,
    /// Where the event is a bell that several pairs share: its marks, and this pair's place there.
    shared: Option<(Descriptor, BellPlace)>,
    of: PairMemory,
}

#[derive(Debug, Default)]
struct Pair {
    ends: [End; 2],
    /// As end 0 sees it; unknown until somebody of a later service's processes holds an end.
    key: Option<OfferKey>,
}

/// All pairs.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    by_id: HashMap<PairId, Box<Pair>>,
    waiting: HashMap<u64, PairId>,
    last_waiting: u64,
    /// Bytes that are kept for each user, on their way back to TCP.
    kept: HashMap<u32, u64>,
}

impl Pairs {
    /// Most ends that one process may hold.
    pub(crate) const MAX_OF_PROCESS: usize = 256 * 1024;

    /// A new pair; `holders` showed end 0 and end 1. The ids of the two ends.
    pub(crate) fn add(
        &mut self,
        key: OfferKey,
        holders: [(ClientKey, u32, u64); 2],
    ) -> [PairId; 2] {
        let id = loop {
            let id = PairId(random_u64() & !1);
            if !self.by_id.contains_key(&id) {
                break id;
            }
        };
        let ends = holders.map(|(client, uid, cookie)| End {
            holders: vec![client],
            uid: Some(uid),
            cookie: Some(cookie),
            ..End::default()
        });
        self.by_id.insert(id, Box::new(Pair { ends, key: Some(key) }));
        [id, id.peer()]
    }

    /// Memory, event and socket of one end. When both ends have brought theirs, each gets the other's. Anything wrong breaks
    /// the pair for both.
    pub(crate) fn export(
        &mut self,
        around: &mut Surroundings<'_>,
        client: (ClientKey, ProcessId),
        id: PairId,
        memory: PairMemory,
        bell: Option<BellPlace>,
        goods: Goods,
    ) {
        let broken = |posts: &mut Vec<Post>| {
            let why = BrokenReason::Refused;
            posts.push(Post::new(client.0, Answer::PairBroken { pair: id, why }));
        };
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return broken(around.posts) };
        if !pair.ends[id.end()].holders.contains(&client.0) {
            return broken(around.posts);
        }
        if !pair.bring(id.end(), client.1, memory, bell, goods) {
            broken(around.posts);
            return self.release(around, client.0, id, BrokenReason::Refused);
        }
        if pair.ends.iter().any(|end| end.memory.is_none()) {
            return;
        }
        let (Some(first), Some(second)) = (around.slots.take(), around.slots.take()) else {
            broken(around.posts);
            return self.release(around, client.0, id, BrokenReason::Refused);
        };
        let stranger = pair.ends[0].uid != pair.ends[1].uid;
        let posts = &mut *around.posts;
        for (index, slot) in [first, second].into_iter().enumerate() {
            let end = &mut pair.ends[index];
            end.slot = Some(slot);
            let Some(brought) = end.memory.take() else { continue };
            let Memory { owner, memory, event, shared, of } = *brought;
            end.words = if of.stream { StreamWords::of(&memory) } else { None };
            let (marks, bell) = shared.unzip();
            let descriptors = [memory, event].into_iter().chain(marks).map(Rc::new).collect();
            let pair_id = PairId(base(id).0 | (index as u64 ^ 1));
            let export = ExportId { process: owner, number: pair_id.peer().0 };
            let (index_word, live) = (slot.index, slot.live());
            let answer = Answer::PairReady {
                pair: pair_id,
                export,
                len: of.len,
                mapped: of.mapped,
                slot: index_word,
                live,
                stranger,
                bell,
            };
            // Only the process that exported gets the peer's memory; other holders of the end share its mappings.
            let to = pair.ends[index ^ 1].holders.first().copied();
            posts.extend(to.map(|to| Post { to, answer, descriptors }));
        }
    }

    /// One more process holds an end; with an unknown id, a pair that an earlier service made. `false` if it may not.
    pub(crate) fn hold(
        &mut self,
        around: &mut Surroundings<'_>,
        client: ClientKey,
        uid: u32,
        id: PairId,
        socket: Option<Socket>,
    ) -> bool {
        let identity = socket.as_ref().and_then(|socket| socket.identity.ok());
        let accepted = match (&identity, socket) {
            (Some(identity), Some(socket)) => {
                let pair = self.by_id.entry(base(id)).or_default();
                pair.hold(client, uid, id.end(), identity, socket)
            }
            _ => false,
        };
        if accepted {
            self.tell_missed(around, client, id);
            // Bytes may have waited for this end.
            self.advance(around, id);
            return true;
        }
        let why = BrokenReason::Refused;
        around.posts.push(Post::new(client, Answer::PairBroken { pair: id, why }));
        self.remove_if_gone(around, id);
        false
    }

    /// A child that will be there soon holds every one of these ends too.
    pub(crate) fn share(&mut self, holds: &HashSet<PairId>, heir: ClientKey) {
        for id in holds {
            if let Some(pair) = self.by_id.get_mut(&base(*id)) {
                pair.ends[id.end()].holders.push(heir);
            }
        }
    }

    /// The child is there, as `client`.
    pub(crate) fn inherit(
        &mut self,
        around: &mut Surroundings<'_>,
        id: PairId,
        heir: ClientKey,
        client: ClientKey,
    ) {
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return };
        for holder in pair.ends[id.end()].holders.iter_mut().filter(|holder| **holder == heir) {
            *holder = client;
        }
        self.tell_missed(around, client, id);
    }

    /// Who holds an end only from now on was not there to be told.
    fn tell_missed(&self, around: &mut Surroundings<'_>, client: ClientKey, id: PairId) {
        let Some(pair) = self.by_id.get(&base(id)) else { return };
        let end = &pair.ends[id.end()];
        if end.handed && end.is_idle() {
            around.posts.push(Post::new(client, Answer::PairHanded { pair: id }));
        }
        if let Some(why) = pair.ends[id.end() ^ 1].closed {
            around.posts.push(Post::new(client, Answer::PairBroken { pair: id, why }));
        }
    }

    /// A process no longer holds an end.
    pub(crate) fn release(
        &mut self,
        around: &mut Surroundings<'_>,
        client: ClientKey,
        id: PairId,
        why: BrokenReason,
    ) {
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return };
        let end = &mut pair.ends[id.end()];
        end.holders.retain(|holder| *holder != client);
        if !end.holders.is_empty() || end.closed.is_some() {
            return;
        }
        let kept = end.lingers && end.socket.is_some();
        if kept && !pair.ends[id.end() ^ 1].holders.is_empty() {
            return;
        }
        if why == BrokenReason::PeerDied {
            pair.end_of_the_dead(id.end());
        }
        self.close(around, id, why);
        self.settle(around, id.peer());
    }

    /// The end's socket is to be kept when its last holder goes, until the peer has read everything.
    pub(crate) fn linger(&mut self, id: PairId) {
        if let Some(pair) = self.by_id.get_mut(&base(id)) {
            let end = &mut pair.ends[id.end()];
            end.lingers = !end.settled;
            // The peer was faster: it has read everything, or has written again, which the end must come before.
            if let Some(socket) = end.socket.as_ref().filter(|_| end.settled && end.is_idle()) {
                socket.end_stream();
            }
        }
    }

    /// Closes an end that lingers. The end of the stream comes first: without it, bytes that nobody will read would make a
    /// reset of the close.
    pub(crate) fn settle(&mut self, around: &mut Surroundings<'_>, id: PairId) {
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return };
        let end = &mut pair.ends[id.end()];
        end.settled = true;
        if !end.lingers || end.closed.is_some() || !end.holders.is_empty() {
            return;
        }
        if let Some(socket) = end.socket.as_ref().filter(|_| end.is_idle()) {
            socket.end_stream();
        }
        self.close(around, id, BrokenReason::PeerDropped);
    }

    /// Nobody holds the end any more.
    fn close(&mut self, around: &mut Surroundings<'_>, id: PairId, why: BrokenReason) {
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return };
        let end = &mut pair.ends[id.end()];
        end.closed = Some(why);
        end.memory = None;
        if let Some(slot) = end.slot {
            let died = why == BrokenReason::PeerDied;
            around.slots.mark(slot, if died { ExportState::Dead } else { ExportState::Revoked });
        }
        let pair_id = id.peer();
        for holder in &pair.ends[id.end() ^ 1].holders {
            around.posts.push(Post::new(*holder, Answer::PairBroken { pair: pair_id, why }));
        }
        self.advance(around, id);
        self.remove_if_gone(around, id);
    }

    /// Bytes that the holder of `id` asks to be written into its peer's socket.
    pub(crate) fn inject(
        &mut self,
        around: &mut Surroundings<'_>,
        client: ClientKey,
        id: PairId,
        lowered: Lowered,
    ) {
        let failed = |posts: &mut Vec<Post>| {
            let why = BrokenReason::InjectFailed;
            posts.push(Post::new(client, Answer::PairBroken { pair: id, why }));
        };
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return failed(around.posts) };
        if !pair.ends[id.end()].holders.contains(&client) {
            return failed(around.posts);
        }
        let end = &mut pair.ends[id.end() ^ 1];
        if end.injection.len() >= Injection::MAX_WAITING
            || (end.closed.is_some() && end.socket.is_none())
        {
            return failed(around.posts);
        }
        end.injection.push(lowered);
        self.keep_account(id.peer());
        self.advance(around, id.peer());
    }

    /// The stream of the holder of `id` has ended, behind bytes that its peer asks to be written into its socket, or will ask.
    pub(crate) fn finish(&mut self, id: PairId) {
        if let Some(pair) = self.by_id.get_mut(&base(id)) {
            let end = &mut pair.ends[id.end()];
            end.finishes = true;
            end.finish_if_handed();
        }
    }

    /// The held socket that waits under `number` can be written.
    pub(crate) fn writable(&mut self, around: &mut Surroundings<'_>, number: u64) {
        if let Some(id) = self.waiting.get(&number).copied() {
            self.advance(around, id);
            self.remove_if_gone(around, id);
        }
    }

    /// Pairs of which an end is held.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether bytes are still on their way.
    pub(crate) fn is_injecting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes what waits for this end's socket, and closes the socket when nobody needs it.
    fn advance(&mut self, around: &mut Surroundings<'_>, id: PairId) {
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return };
        let end = &mut pair.ends[id.end()];
        // Without a socket the bytes wait: the end is held by a process that has not announced itself to this service yet.
        let Some(socket) = end.socket.as_ref().filter(|_| !end.away) else { return };
        match socket.write(id, &mut end.injection) {
            Some((progress, handed)) => self.advanced(around, id, progress, handed),
            None => end.away = true,
        }
    }

    /// The hall of an end's user has written what it could.
    pub(crate) fn wrote(
        &mut self,
        around: &mut Surroundings<'_>,
        id: PairId,
        rest: Injection,
        progress: Progress,
        handed: usize,
    ) {
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return };
        let end = &mut pair.ends[id.end()];
        end.away = false;
        end.injection.put_back(rest);
        let more = progress != Progress::More && !end.injection.is_empty();
        self.advanced(around, id, progress, handed);
        if more {
            self.advance(around, id);
        }
        self.remove_if_gone(around, id);
    }

    /// So far came what waits for this end's socket.
    fn advanced(
        &mut self,
        around: &mut Surroundings<'_>,
        id: PairId,
        progress: Progress,
        handed: usize,
    ) {
        self.keep_account(id);
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return };
        let end = &mut pair.ends[id.end()];
        end.handed |= handed > 0;
        end.finish_if_handed();
        let Some(socket) = end.socket.as_ref().and_then(Socket::as_fd) else { return };
        for holder in &end.holders {
            for _ in 0..handed {
                around.posts.push(Post::new(*holder, Answer::PairHanded { pair: id }));
            }
        }
        match (progress, end.waiting) {
            (Progress::More, None) => {
                self.last_waiting += 1;
                let number = self.last_waiting;
                if around.poller.add(socket, HELD | number, Readiness::WRITE).is_ok() {
                    end.waiting = Some(number);
                    self.waiting.insert(number, id);
                }
            }
            (Progress::Done | Progress::Failed, Some(number)) => {
                around.poller.remove(socket);
                end.waiting = None;
                self.waiting.remove(&number);
            }
            _ => {}
        }
        if end.closed.is_some() && end.is_idle() {
            end.socket = None;
        }
        if progress == Progress::Failed {
            let why = BrokenReason::InjectFailed;
            for holder in &pair.ends[id.end() ^ 1].holders {
                around.posts.push(Post::new(*holder, Answer::PairBroken { pair: id.peer(), why }));
            }
        }
    }

    /// Bytes that are kept for a user, on their way back to TCP.
    pub(crate) fn kept_for(&self, uid: u32) -> u64 {
        self.kept.get(&uid).copied().unwrap_or(0)
    }

    /// Enters what waits for this end's socket in the account of the peer's user, who wants it written.
    fn keep_account(&mut self, id: PairId) {
        let Some(pair) = self.by_id.get_mut(&base(id)) else { return };
        let Some(uid) = pair.ends[id.end() ^ 1].uid else { return };
        let end = &mut pair.ends[id.end()];
        // What is away is known when it is back.
        let now = end.injection.kept().max(if end.away { end.kept } else { 0 });
        let before = std::mem::replace(&mut end.kept, now);
        let account = self.kept.entry(uid).or_default();
        *account = (*account + now).saturating_sub(before);
        if *account == 0 {
            self.kept.remove(&uid);
        }
    }

    fn remove_if_gone(&mut self, around: &mut Surroundings<'_>, id: PairId) {
        let Some(pair) = self.by_id.get(&base(id)) else { return };
        let unused = |end: &End| end.holders.is_empty() && end.socket.is_none();
        if !pair.ends.iter().all(unused) {
            return;
        }
        for end in [id, id.peer()] {
            if let Some(pair) = self.by_id.get_mut(&base(id)) {
                pair.ends[end.end()].injection = Injection::default();
            }
            self.keep_account(end);
        }
        if let Some(pair) = self.by_id.remove(&base(id)) {
            for slot in pair.ends.iter().filter_map(|end| end.slot) {
                around.slots.give_back(slot);
            }
        }
    }
}

impl End {
    /// Nothing waits for its socket.
    fn is_idle(&self) -> bool {
        self.injection.is_empty() && !self.away
    }

    /// Ends the stream on its socket, if that waited only for bytes of before.
    fn finish_if_handed(&mut self) {
        if self.finishes && self.handed && self.is_idle() {
            self.finishes = false;
            self.socket.iter().for_each(Socket::end_stream);
        }
    }
}

impl Pair {
    /// Checks and keeps what `pair_export` brought.
    fn bring(
        &mut self,
        index: usize,
        owner: ProcessId,
        of: PairMemory,
        bell: Option<BellPlace>,
        goods: Goods,
    ) -> bool {
        let mut descriptors = goods.descriptors.into_iter();
        let (Some(memory), Some(event), Some(socket)) =
            (descriptors.next(), descriptors.next(), goods.socket)
        else {
            return false;
        };
        let shared = descriptors.next().zip(bell);
        if shared.is_some() != bell.is_some() || descriptors.next().is_some() {
            return false;
        }
        let page = PAGE_SIZE as u64;
        let is_fixed =
            |memory: &Descriptor| memory_seals(memory).is_ok_and(|seals| seals.fixed_size);
        let marks = shared.as_ref().is_none_or(|(marks, _)| {
            is_fixed(marks) && memory_len(marks).is_ok_and(|found| found >= page)
        });
        let lengths = (1..=MAX_EXPORT_LEN).contains(&of.len)
            && (1..=of.len).contains(&of.mapped)
            && is_fixed(&memory)
            && memory_len(&memory).is_ok_and(|found| found >= of.len.next_multiple_of(page));
        // Both sockets established, with these addresses in one network: then they are each other's ends.
        let connection = socket.identity;
        let end = &mut self.ends[index];
        let same =
            connection.is_ok_and(|found| end.cookie == Some(found.cookie) && found.established);
        if !lengths || !marks || !same || !is_event(event.as_fd()) || end.slot.is_some() {
            return false;
        }
        end.socket = Some(socket);
        end.memory = Some(Box::new(Memory { owner, memory, event, shared, of }));
        true
    }

    /// Nobody has the end any more, because a process has died: its kernel would answer bytes that it left unread with a reset. It does not
    /// know of those in the rings.
    fn end_of_the_dead(&self, index: usize) {
        let (end, peer) = (&self.ends[index], &self.ends[index ^ 1]);
        let (Some(own), Some(peers)) = (&end.words, &peer.words) else { return };
        if let Some(socket) = end.socket.as_ref().filter(|_| end.is_idle() && !end.lingers) {
            match own.end_with(peers) {
                EndOnTcp::Plain => {}
                EndOnTcp::Reset => socket.reset_at_close(),
                EndOnTcp::EndThenReset => {
                    socket.end_stream();
                    socket.reset_at_close();
                }
            }
        }
    }

    /// Checks and enters one more holder.
    fn hold(
        &mut self,
        client: ClientKey,
        uid: u32,
        index: usize,
        identity: &ConnectionIdentity,
        socket: Socket,
    ) -> bool {
        let shown = OfferKey::of(identity);
        let shown = if index == 0 { shown } else { shown.reversed() };
        let end = &mut self.ends[index];
        let same_user = end.uid.is_none_or(|known| known == uid);
        // Between networks the addresses say nothing; but nobody else knows the pair's number.
        let same_connection = self.key.is_none_or(|key| key == shown || key.is_apart(shown));
        let same_socket = end.cookie.is_none_or(|cookie| cookie == identity.cookie);
        if !same_user || !same_connection || !same_socket || end.closed.is_some() {
            return false;
        }
        self.key = Some(shown);
        end.uid = Some(uid);
        end.cookie = Some(identity.cookie);
        if end.socket.is_none() {
            end.socket = Some(socket);
        }
        if !end.holders.contains(&client) {
            end.holders.push(client);
        }
        true
    }
}

/// Pairs are kept under the id of end 0.
fn base(id: PairId) -> PairId {
    PairId(id.0 & !1)
}
