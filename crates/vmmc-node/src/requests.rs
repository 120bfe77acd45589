//! What the service does for each request.

use std::os::fd::AsFd;
use std::rc::Rc;

use vmmc_os::{
    Descriptor, Holding, Readiness, ServiceOf, is_packet_socket, memory_len, memory_seals,
    network_of, random_u64, socket_number, user_id,
};
use vmmc_proto::{
    Answer, BrokenReason, ExportDeclaration, ExportId, HeirId, Hello, MAX_ENTRIES, MAX_NAME,
    OfferId, PairId, ProcessEntry, ProcessId, Refusal, Request, Rights, Target, VERSION, Welcome,
};
use vmmc_shm::table::ExportState;

use crate::accounts::{Item, is_stranger};
use crate::apart::Apart;
use crate::clients::{Client, ClientKey, Clients, Identity, Post};
use crate::cluster::Wish;
use crate::customs::{Goods, Socket};
use crate::exports::Exports;
use crate::injection::{Bytes, Lowered};
use crate::inquiries::Inquiry;
use crate::offers::{Offer, OfferKey, Offers};
use crate::pairs::{PairMemory, Pairs};
use crate::service::{SOCKET, Service};

impl Service {
    /// Does what a client asks. Anything but Hello from a client without identity, and a second Hello, disconnects it.
    pub(crate) fn handle(&mut self, key: ClientKey, request: Request, goods: Goods) {
        #[cfg(chaos)]
        vmmc_os::chaos::pause(300);
        let Some(client) = self.clients.get(key) else { return };
        match (client.identity.is_some(), client.process_id(), request) {
            (_, _, Request::PairDrop { pair, linger }) if client.is_heir() => {
                self.drop_pair(key, pair, linger);
            }
            (_, _, Request::PairSettle { pair }) if client.is_heir() => self.settle_pair(key, pair),
            _ if client.is_heir() => self.doom(key),
            (false, _, Request::Hello(hello)) => self.hello(key, hello),
            (true, _, Request::Status { seq }) => {
                let status = self.status();
                self.reply(key, Answer::Status { seq, status });
            }
            (true, _, Request::Stop { seq })
                if ![0, user_id()].contains(&client.credentials.uid) =>
            {
                self.reply(key, Answer::Refused { seq, why: Refusal::NotAllowed });
            }
            (true, _, Request::Stop { seq }) => {
                self.stopping = true;
                self.reply(key, Answer::Done { seq });
            }
            (true, Some(id), request) => {
                self.handle_process(key, id, request, goods);
            }
            _ => self.doom(key),
        }
    }

    fn handle_process(
        &mut self,
        key: ClientKey,
        process: ProcessId,
        request: Request,
        goods: Goods,
    ) {
        let Some(uid) = self.clients.get(key).map(|client| client.credentials.uid) else { return };
        match request {
            Request::Hello(_) | Request::Status { .. } | Request::Stop { .. } => self.doom(key),
            Request::Import { seq, .. }
            | Request::Queue { seq }
            | Request::Processes { seq, .. }
            | Request::Exports { seq, .. }
                if self.clients.get(key).is_some_and(|client| client.pairing_only) =>
            {
                self.reply(key, Answer::Refused { seq, why: Refusal::NotAllowed });
            }
            Request::Export { seq, .. } if goods.truncated => {
                self.reply(key, Answer::Refused { seq, why: Refusal::Exhausted });
            }
            Request::Export { seq, declaration } => {
                let result = self.export(key, process, declaration, goods.descriptors);
                self.finish(key, seq, result);
            }
            Request::Unexport { seq, number } => {
                let id = ExportId { process, number };
                let result = self.exports.remove(&mut self.slots, id, ExportState::Revoked);
                if let Some(client) = self.clients.get_mut(key) {
                    client.exports.remove(&number);
                }
                self.tell_end(id, false);
                self.finish(key, seq, result);
            }
            Request::Import { seq, node: Some(node), target, rights, key: secret, .. } => {
                let Some(client) = self.clients.get(key) else { return };
                let credentials = client.credentials;
                let wish =
                    Wish { client: key, seq, node, target, rights, key: secret, credentials };
                let asked = self.with_cluster(|cluster, around| cluster.import(around, wish));
                if let Err(why) = asked.unwrap_or(Err(Refusal::UnknownNode)) {
                    self.reply(key, Answer::Refused { seq, why });
                }
            }
            Request::Import { seq, node: None, target, rights, key: secret, again } => {
                if let Err(why) = self.import(key, seq, &target, rights, secret, again) {
                    self.reply(key, Answer::Refused { seq, why });
                }
            }
            Request::Unimport { handle } => {
                let known = self.clients.get_mut(key).is_some_and(|c| c.imports.remove(&handle));
                if known {
                    self.give_back(handle);
                }
            }
            Request::Queue { seq } => {
                let result = self.attach(key, goods.descriptors);
                self.finish(key, seq, result);
            }
            Request::Ring => {}
            Request::Lane { handle } => {
                self.with_cluster(|cluster, around| cluster.open_lane(around, key, handle));
            }
            Request::FenceLane { seq, handle, link, channel, generation } => {
                let channel = (channel, generation);
                let asked = self.with_cluster(|cluster, around| {
                    cluster.fence_lane(around, (key, seq), handle, link, channel)
                });
                if let Err(why) = asked.unwrap_or(Err(Refusal::UnknownNode)) {
                    self.reply(key, Answer::Refused { seq, why });
                }
            }
            Request::Processes { seq, after } => {
                let entries = self.processes(after, uid);
                self.reply(key, Answer::Processes { seq, entries });
            }
            Request::Exports { seq, after } => {
                let entries = self.exports.list(after, uid);
                self.reply(key, Answer::Exports { seq, entries });
            }
            Request::Reserve { seq, bytes } => {
                let bytes = self.pinning.reserve(key, bytes);
                self.reply(key, Answer::Reserved { seq, bytes });
            }
            Request::PairOffer { offer } => self.offer(key, offer, goods.socket),
            Request::PairHolders { inquiry } => self.inquire(key, inquiry, goods.socket),
            Request::PairExport { pair, len, mapped, stream, bell } => {
                self.with_pairs(|pairs, around| {
                    let memory = PairMemory { len, mapped, stream };
                    pairs.export(around, (key, process), pair, memory, bell, goods);
                });
            }
            Request::PairHold { pair } => self.hold(key, pair, goods.socket),
            Request::PairHeir { heir } => self.announce(key, heir, goods.descriptors),
            Request::PairDrop { pair, linger } => self.drop_pair(key, pair, linger),
            Request::PairSettle { pair } => self.settle_pair(key, pair),
            Request::PairFinish { pair } => self.finish_pair(key, pair),
            Request::PairInject { pair, bytes, len, finish } => {
                self.inject(key, pair, (bytes, len), finish, goods.descriptors);
            }
        }
    }

    fn hello(&mut self, key: ClientKey, hello: Hello) {
        let refuse = |service: &mut Self, why| {
            service.reply(key, Answer::Refused { seq: 0, why });
        };
        if hello.version != VERSION {
            return refuse(self, Refusal::Version);
        }
        if hello.name.len() > MAX_NAME {
            return refuse(self, Refusal::Invalid);
        }
        let Some(client) = self.clients.get(key) else { return };
        let (pid, uid) = (client.credentials.pid, client.credentials.uid);
        let mut id = ProcessId { node: self.node, index: pid, incarnation: 0 };
        let mut mail_slot = 0;
        if hello.control {
            self.clients.identify(key, Identity::Control);
        } else {
            // A process outside our process namespace has no number here: any index that no number has will do.
            if pid == 0 {
                #[allow(clippy::cast_possible_truncation)]
                let index = random_u64() as u32 | 1 << 31;
                id.index = index;
            }
            let resumed = hello.resume.map(|resume| resume.process).filter(|old| {
                // Of processes without a number nobody knows which is which; between users that would not do.
                let unseen = pid == 0 && old.index >> 31 == 1 && self.of == ServiceOf::User;
                let same_process = pid != 0 && old.index == pid || unseen;
                old.node == self.node && same_process && !self.clients.has_process(*old)
            });
            id = match resumed {
                Some(old) => old,
                None => self.fresh(id),
            };
            let Some(slot) = self.slots.take_mail() else { return refuse(self, Refusal::Limit) };
            mail_slot = slot;
            self.clients.identify(key, Identity::Process { id, name: hello.name, mail_slot });
            if let Some(client) = self.clients.get_mut(key) {
                client.pairing_only = hello.pairing_only;
                client.hosts_lanes = hello.hosts_lanes;
                client.network = network_of(&client.socket).ok();
                client.network.into_iter().for_each(|network| self.apart.enter(network));
            }
            self.slots.tell_networks(self.apart.networks());
        }
        let Ok(table) = Descriptor::duplicate(self.slots.table.as_fd()) else {
            return refuse(self, Refusal::Exhausted);
        };
        #[allow(clippy::cast_possible_truncation)]
        let heir = hello.heir.filter(|_| !hello.control);
        let heir = heir.and_then(|heir| self.clients.heir(heir, uid));
        let welcome = Welcome {
            version: VERSION,
            process: id,
            service_pid: vmmc_os::process_id(),
            uid,
            inherited: heir.is_some(),
            mail_slot,
            max_exports: Exports::MAX_OF_PROCESS as u32,
            max_offers: Offers::MAX_OF_PROCESS as u32,
        };
        self.posts.push(Post {
            to: key,
            answer: Answer::Welcome(welcome),
            descriptors: vec![Rc::new(table)],
        });
        if let Some(heir) = heir {
            self.inherit(heir, key);
        }
    }

    /// A process is about to fork: what it holds is held for its child too, from this moment on.
    fn announce(&mut self, key: ClientKey, heir: HeirId, mut descriptors: Vec<Descriptor>) {
        let Some(parent) = self.clients.get(key) else { return };
        let uid = parent.credentials.uid;
        let is_one = descriptors.len() == 1 && is_packet_socket(descriptors[0].as_fd());
        let admitted = [Item::Process, Item::Pair]
            .into_iter()
            .all(|item| self.accounts.admits(&self.clients, uid, item));
        let is_new = self.clients.heir(heir, uid).is_none();
        let Some(socket) = descriptors.pop_if(|_| is_one && admitted && is_new) else {
            return self.discard(uid, descriptors);
        };
        let heir = Client::heir(parent, heir, socket);
        let heir = self.clients.add(heir);
        let Some(client) = self.clients.get(heir) else { return };
        self.pairs.share(&client.holds, heir);
        if self.poller.add(&client.socket, SOCKET | heir.0, Readiness::READ).is_err() {
            self.doom(heir);
        }
    }

    /// The child is there: what was kept for it is its own.
    fn inherit(&mut self, heir: ClientKey, key: ClientKey) {
        // What it let go of before comes first.
        self.hear_out(heir);
        let holds = self.clients.get_mut(heir).map(|heir| std::mem::take(&mut heir.holds));
        let Some((holds, client)) = holds.zip(self.clients.get_mut(key)) else { return };
        client.holds.extend(&holds);
        self.with_pairs(|pairs, around| {
            holds.iter().for_each(|pair| pairs.inherit(around, *pair, heir, key));
        });
        self.doom(heir);
    }

    /// A process that holds an end needs nothing of the peer's socket any more.
    fn settle_pair(&mut self, key: ClientKey, pair: PairId) {
        if self.clients.get(key).is_some_and(|client| client.holds.contains(&pair)) {
            self.with_pairs(|pairs, around| pairs.settle(around, pair.peer()));
        }
    }

    /// A process that holds an end has ended its stream, behind what its peer lowers unread.
    fn finish_pair(&mut self, key: ClientKey, pair: PairId) {
        if self.clients.get(key).is_some_and(|client| client.holds.contains(&pair)) {
            self.pairs.finish(pair);
        }
    }

    /// A process holds an end no longer.
    fn drop_pair(&mut self, key: ClientKey, pair: PairId, linger: bool) {
        if self.clients.get_mut(key).is_some_and(|client| client.holds.remove(&pair)) {
            self.with_pairs(|pairs, around| {
                if linger {
                    pairs.linger(pair);
                }
                pairs.release(around, key, pair, BrokenReason::PeerDropped);
            });
        }
    }

    /// An incarnation that nobody had.
    fn fresh(&self, mut id: ProcessId) -> ProcessId {
        loop {
            #[allow(clippy::cast_possible_truncation)]
            let incarnation = random_u64() as u32;
            id.incarnation = incarnation;
            if !self.clients.has_process(id) && !self.clients.is_dead(id) {
                return id;
            }
        }
    }

    fn export(
        &mut self,
        key: ClientKey,
        process: ProcessId,
        declaration: ExportDeclaration,
        descriptors: Vec<Descriptor>,
    ) -> Result<(), Refusal> {
        let client = self.clients.get(key).ok_or(Refusal::Invalid)?;
        if client.exports.len() >= Exports::MAX_OF_PROCESS {
            return Err(Refusal::Limit);
        }
        let number = declaration.number;
        let id = ExportId { process, number };
        let owner = client.credentials;
        if !self.accounts.admits(&self.clients, owner.uid, Item::Export) {
            return Err(Refusal::Limit);
        }
        self.exports.add(&mut self.slots, id, owner, declaration, descriptors)?;
        if let Some(client) = self.clients.get_mut(key) {
            client.exports.insert(number);
        }
        Ok(())
    }

    fn import(
        &mut self,
        key: ClientKey,
        seq: u32,
        target: &Target,
        rights: Rights,
        secret: Option<[u8; 16]>,
        again: bool,
    ) -> Result<(), Refusal> {
        let client = self.clients.get(key).ok_or(Refusal::Invalid)?;
        let importer = client.credentials;
        let own = (self.of == ServiceOf::Host).then_some(importer.uid);
        let id = find_export(&self.clients, &self.exports, target, own)?;
        if client.imports.len() >= Exports::MAX_IMPORTS
            || !self.accounts.admits(&self.clients, importer.uid, Item::Import)
        {
            return Err(Refusal::Limit);
        }
        let (grant, descriptors) = self.exports.import(id, &importer, rights, secret, again)?;
        if let Some(client) = self.clients.get_mut(key) {
            client.imports.insert(grant.handle);
        }
        self.posts.push(Post { to: key, answer: Answer::Granted { seq, grant }, descriptors });
        Ok(())
    }

    /// A page of the list as a user sees it: strangers' processes are not shown to a stranger.
    fn processes(&self, after: u64, uid: u32) -> Vec<ProcessEntry> {
        let mut keys: Vec<ClientKey> =
            self.clients.by_key.keys().copied().filter(|key| key.0 > after).collect();
        keys.sort_unstable();
        let entries = keys.into_iter().filter_map(|key| {
            let client = self.clients.get(key)?;
            let Some(Identity::Process { id, name, .. }) = &client.identity else { return None };
            if is_stranger(uid) && client.credentials.uid != uid {
                return None;
            }
            Some(ProcessEntry {
                serial: key.0,
                id: *id,
                pid: client.credentials.pid,
                uid: client.credentials.uid,
                name: name.clone(),
            })
        });
        entries.take(MAX_ENTRIES).collect()
    }

    /// Who has a connection: known when the processes have been looked at.
    fn inquire(&mut self, key: ClientKey, id: OfferId, socket: Option<Socket>) {
        let Some(client) = self.clients.get(key) else { return };
        let pid = client.credentials.pid;
        // Of anything but a connection even the number could be long in coming.
        let socket = socket.filter(|socket| socket.identity.is_ok() && pid != 0);
        let socket = socket.and_then(|socket| socket_number(socket.as_fd()?).ok());
        let waits = socket
            .is_some_and(|socket| self.inquiries.wait(Inquiry { client: key, id, pid, socket }));
        if !waits {
            self.reply(key, Answer::PairHolders { inquiry: id, alone: false });
        }
    }

    /// Looks who has the connections that are asked about, if it is time; tells what was found.
    pub(crate) fn look_for_holders(&mut self) {
        for (inquiry, holding) in self.inquiries.found() {
            let alone = holding == Holding::Alone;
            self.reply(inquiry.client, Answer::PairHolders { inquiry: inquiry.id, alone });
        }
        let pids = || self.clients.by_key.values().map(|client| client.credentials.pid).collect();
        self.inquiries.look(pids);
    }

    fn offer(&mut self, key: ClientKey, id: OfferId, socket: Option<Socket>) {
        let Some(socket) = socket else { return };
        let (Ok(identity), Some(shown)) = (socket.identity, socket.as_fd()) else { return };
        if !identity.established {
            return;
        }
        let Some(client) = self.clients.get(key) else { return };
        let uid = client.credentials.uid;
        if client.holds.len() >= Pairs::MAX_OF_PROCESS
            || !self.accounts.admits(&self.clients, uid, Item::Pair)
        {
            return;
        }
        let offer_key = OfferKey::of(&identity);
        let offer = Offer { client: key, uid, id, cookie: identity.cookie };
        if let Some(other) = self.offers.take_match(offer_key, &offer) {
            self.apart.forget(other.cookie);
            return self.pair_up(offer_key.reversed(), [other, offer]);
        }
        let full = !self.accounts.admits(&self.clients, uid, Item::Offer);
        self.offers.wait(offer_key, offer);
        let Some(client) = self.clients.get_mut(key) else { return };
        client.offers.push_back(offer_key);
        if (full || client.offers.len() > Offers::MAX_OF_PROCESS)
            && let Some(oldest) = client.offers.pop_front()
        {
            self.offers.forget(oldest, key);
        }
        let gone = self.apart.wait(shown, offer_key, offer, !identity.stays_here());
        gone.into_iter().for_each(|gone| self.unseen(gone));
    }

    /// Compares the ends that wait for others in other networks, if it is time.
    pub(crate) fn look_apart(&mut self) {
        let (recognised, over) = self.apart.look();
        for ends in recognised {
            for end in &ends {
                self.offers.forget(end.key, end.offer.client);
            }
            self.pair_up(ends[0].key, ends.map(|end| end.offer));
        }
        over.into_iter().for_each(|gone| self.unseen(gone));
    }

    /// An end was not recognised. If its process will offer it again, it does not wait here.
    fn unseen(&mut self, Apart { key, offer, told, .. }: Apart) {
        if told {
            self.offers.forget(key, offer.client);
            self.reply(offer.client, Answer::PairUnseen { offer: offer.id });
        }
    }

    /// Tells the owners of two ends of one connection; `key` is how end 0 sees it, the one that was shown first.
    fn pair_up(&mut self, key: OfferKey, ends: [Offer; 2]) {
        let of = |offer: &Offer| {
            let client = self.clients.get(offer.client)?;
            Some((client.process_id()?, client.credentials.pid))
        };
        let [Some(first), Some(second)] = ends.each_ref().map(of) else { return };
        let uids = ends.map(|offer| offer.uid);
        if uids[0] != uids[1] && !self.policy.lets_meet(uids, key.ports()) {
            for Offer { client, id, .. } in ends {
                self.reply(client, Answer::PairDenied { offer: id });
            }
            return;
        }
        let holders = ends.map(|offer| (offer.client, offer.uid, offer.cookie));
        let pairs = self.pairs.add(key, holders);
        let peers = [(second, uids[1]), (first, uids[0])];
        for ((offer, pair), ((peer, peer_pid), peer_uid)) in ends.iter().zip(pairs).zip(peers) {
            if let Some(client) = self.clients.get_mut(offer.client) {
                client.holds.insert(pair);
            }
            let matched = Answer::PairMatched { offer: offer.id, pair, peer, peer_pid, peer_uid };
            self.reply(offer.client, matched);
        }
    }

    fn hold(&mut self, key: ClientKey, pair: PairId, socket: Option<Socket>) {
        let Some(client) = self.clients.get(key) else { return };
        let uid = client.credentials.uid;
        if client.holds.len() >= Pairs::MAX_OF_PROCESS
            || !self.accounts.admits(&self.clients, uid, Item::Pair)
        {
            let why = BrokenReason::Refused;
            return self.reply(key, Answer::PairBroken { pair, why });
        }
        let held = self.with_pairs(|pairs, around| pairs.hold(around, key, uid, pair, socket));
        if held && let Some(client) = self.clients.get_mut(key) {
            client.holds.insert(pair);
        }
    }

    fn inject(
        &mut self,
        key: ClientKey,
        pair: PairId,
        (bytes, len): (Vec<u8>, u64),
        finish: bool,
        descriptors: Vec<Descriptor>,
    ) {
        let bytes = match descriptors.into_iter().next() {
            // Sealed, so that reading it can neither block nor end early.
            Some(memory)
                if memory_seals(&memory).is_ok_and(|seals| seals.fixed_size)
                    && memory_len(&memory).is_ok_and(|found| found >= len) =>
            {
                Bytes::Memory { memory, len, done: 0 }
            }
            None if len == 0 => Bytes::Inline { bytes, done: 0 },
            _ => {
                let why = BrokenReason::InjectFailed;
                return self.reply(key, Answer::PairBroken { pair, why });
            }
        };
        let kept = match &bytes {
            Bytes::Inline { bytes, .. } => bytes.len() as u64,
            Bytes::Memory { .. } => 0,
        };
        let uid = self.clients.get(key).map_or(0, |client| client.credentials.uid);
        if self.accounts.is_over(uid, self.pairs.kept_for(uid) + kept) {
            return self.reply(key, Answer::PairBroken { pair, why: BrokenReason::InjectFailed });
        }
        self.with_pairs(|pairs, around| pairs.inject(around, key, pair, Lowered { bytes, finish }));
    }

    fn finish(&mut self, key: ClientKey, seq: u32, result: Result<(), Refusal>) {
        let answer = match result {
            Ok(()) => Answer::Done { seq },
            Err(why) => Answer::Refused { seq, why },
        };
        self.reply(key, answer);
    }

    fn reply(&mut self, key: ClientKey, answer: Answer) {
        self.posts.push(Post::new(key, answer));
    }
}

/// The export that an importer means; by name alone one of this user's, if given, so that no other can take its place.
pub(crate) fn find_export(
    clients: &Clients,
    exports: &Exports,
    target: &Target,
    user: Option<u32>,
) -> Result<ExportId, Refusal> {
    let unknown = |process: ProcessId| {
        if clients.has_process(process) {
            Refusal::UnknownExport
        } else if clients.is_dead(process) {
            Refusal::DeadProcess
        } else {
            Refusal::UnknownProcess
        }
    };
    match target {
        Target::Id(id) if clients.has_process(id.process) => Ok(*id),
        Target::Id(id) => Err(unknown(id.process)),
        Target::Named { process, name } => {
            exports.find(*process, name).ok_or_else(|| unknown(*process))
        }
        Target::Name(name) => exports.find_any(user, name).ok_or(Refusal::UnknownExport),
    }
}
